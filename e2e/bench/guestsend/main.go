// Command guestsend sends bytes to a TCP address from within a guest.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

// unit is how much is given to the kernel at a time, in bytes.
const unit = 256 << 10

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: guestsend ADDRESS:PORT BYTES")
		os.Exit(2)
	}
	bytes, err := strconv.Atoi(os.Args[2])
	if err == nil {
		err = send(os.Args[1], bytes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestsend:", err)
		os.Exit(1)
	}
}

func send(address string, bytes int) error {
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, unit)
	for bytes > 0 {
		n, err := conn.Write(buf[:min(unit, bytes)])
		if err != nil {
			return err
		}
		bytes -= n
	}
	return conn.Close()
}
