package kernel

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// Bounds on what is read into memory: a distribution's vmlinuz has about 10 MiB and its
// vmlinux about 60.
const (
	maxImageBytes   = 256 << 20
	maxVmlinuxBytes = 512 << 20
	// maxDictBytes bounds the window of xz, lzma and zstd, which a header may claim to be
	// gigabytes. zstd --ultra -22, the kernel's own choice, uses 128 MiB.
	maxDictBytes = 128 << 20
)

// Offsets in the x86 boot protocol's setup header, Documentation/arch/x86/boot.rst.
const (
	offSetupSects    = 0x1f1 // uint8: 512-byte sectors of real-mode code after the first; 0 means 4
	offBootFlag      = 0x1fe // uint16: 0xaa55
	offMagic         = 0x202 // "HdrS"
	offVersion       = 0x206 // uint16
	offPayload       = 0x248 // uint32: offset of the payload in the protected-mode code
	offPayloadLength = 0x24c // uint32
	endOfHeader      = 0x250

	payloadVersion = 0x208 // the first protocol that locates its payload
)

// ExtractVmlinux returns the uncompressed ELF kernel in a bzImage (vmlinuz), or image
// itself if it is such an ELF file. The result is for x86-64 and can be booted directly
// (it has a PVH entry point). The error is a sentence about what image is instead.
func ExtractVmlinux(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte("\x7fELF")) {
		return image, checkELF(image)
	}
	payload, err := findPayload(image)
	if err != nil {
		return nil, err
	}
	vmlinux, err := decompress(payload)
	if err != nil {
		return nil, err
	}
	return vmlinux, checkELF(vmlinux)
}

// findPayload returns the compressed kernel in a bzImage.
func findPayload(image []byte) ([]byte, error) {
	if err := refuseForeign(image); err != nil {
		return nil, err
	}
	if len(image) < endOfHeader {
		return nil, errors.New("it is too short to be a kernel")
	}
	le := binary.LittleEndian
	if le.Uint16(image[offBootFlag:]) != 0xaa55 || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, errors.New("it is neither a bzImage (vmlinuz) nor an ELF vmlinux")
	}
	if v := le.Uint16(image[offVersion:]); v < payloadVersion {
		return nil, fmt.Errorf("its boot protocol %d.%02d is older than 2.08 (Linux 2.6.26)", v>>8, v&0xff)
	}
	sects := int64(image[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int64(le.Uint32(image[offPayload:]))
	end := start + int64(le.Uint32(image[offPayloadLength:]))
	if end > int64(len(image)) {
		return nil, fmt.Errorf("it is truncated: its header promises %d bytes and it has %d", end, len(image))
	}
	if end-start < 8 {
		return nil, errors.New("its header names no payload")
	}
	return image[start:end], nil
}

// refuseForeign names the kernels of other machines that people hold.
func refuseForeign(image []byte) error {
	at := func(off int, magic string) bool {
		return len(image) >= off+len(magic) && string(image[off:off+len(magic)]) == magic
	}
	switch {
	case at(56, "ARM\x64"):
		return errors.New("it is a kernel for arm64, not x86-64")
	case at(48, "RISCV\x00\x00\x00"), at(56, "RSC\x05"):
		return errors.New("it is a kernel for RISC-V, not x86-64")
	case at(0, "MZ\x00\x00zimg"):
		return errors.New("it is a compressed EFI image (zboot), which no x86-64 kernel uses")
	case at(0, "\x27\x05\x19\x56"):
		return errors.New("it is a U-Boot image, not an x86-64 kernel")
	}
	return nil
}

// decompress unpacks a payload whose last four bytes are its uncompressed size.
func decompress(payload []byte) ([]byte, error) {
	name, r, err := payloadReader(payload)
	if err != nil {
		return nil, err
	}
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxVmlinuxBytes {
		return nil, fmt.Errorf("its %s payload claims to unpack to %d MiB, more than any kernel", name, size>>20)
	}
	// A buffer that grows with what really comes out: the claim alone costs no memory.
	var out bytes.Buffer
	_, err = io.Copy(&out, io.LimitReader(r, size+1))
	if c, ok := r.(io.Closer); ok {
		c.Close()
	}
	n := int64(out.Len())
	switch {
	case n > size:
		return nil, fmt.Errorf("its %s payload unpacks to more than the %d bytes it claims", name, size)
	case err != nil:
		return nil, fmt.Errorf("its %s payload is damaged: %w", name, err)
	case n < size:
		return nil, fmt.Errorf("its %s payload unpacks to %d bytes and not to the %d it claims", name, n, size)
	}
	return out.Bytes(), nil
}

// payloadReader chooses the decompressor by the payload's first bytes.
func payloadReader(payload []byte) (name string, r io.Reader, err error) {
	// Only gzip ends with the size by itself; for the others the build appends it.
	body := payload[:len(payload)-4]
	has := func(magic string) bool { return bytes.HasPrefix(body, []byte(magic)) }
	switch {
	case has("\x02\x21\x4c\x18"): // the legacy frame, all that the kernel unpacks
		return "lz4", lz4.NewReader(bytes.NewReader(body)), nil
	case has("\x1f\x8b"):
		name = "gzip"
		r, err = gzip.NewReader(bytes.NewReader(payload))
	case has("\xfd7zXZ\x00"): // with the x86 branch filter, which the common library lacks
		name = "xz"
		r, err = xz.NewReader(bytes.NewReader(body), maxDictBytes)
	case has("\x28\xb5\x2f\xfd"):
		name = "zstd"
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxDictBytes), zstd.WithDecoderMaxMemory(maxVmlinuxBytes+1))
		if err == nil {
			r = d.IOReadCloser()
		}
	case has("BZh"):
		return "bzip2", bzip2.NewReader(bytes.NewReader(body)), nil
	case has("\x5d\x00\x00"):
		name = "lzma"
		r, err = lzmaReader(body)
	case has("\x89LZO"):
		return "", nil, errors.New("its payload is compressed with LZO, which banger does not unpack")
	default:
		return "", nil, errors.New("its payload is not compressed in a known way")
	}
	if err != nil {
		return "", nil, fmt.Errorf("its %s payload is damaged: %w", name, err)
	}
	return name, r, nil
}

// lzmaReader checks the dictionary's size first, for which the library allocates
// whatever the header says.
func lzmaReader(body []byte) (io.Reader, error) {
	if len(body) < lzma.HeaderLen {
		return nil, io.ErrUnexpectedEOF
	}
	if dict := binary.LittleEndian.Uint32(body[1:]); dict > maxDictBytes {
		return nil, fmt.Errorf("it wants a dictionary of %d MiB", dict>>20)
	}
	return lzma.NewReader(bytes.NewReader(body))
}
