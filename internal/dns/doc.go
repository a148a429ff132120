// Package dns is banger's name server. It is authoritative for .vm and for the reverse of
// one subnet, from an immutable snapshot of records that [Server.Set] replaces, and it
// forwards what guests ask of anything else to the host's own resolvers. It decides what is
// answered to whom; of VMs it knows nothing.
//
// Questions can't run in circles. Resolvers at an address that the server listens on are
// left out; what the host itself asks is never forwarded; and a question that is on its way
// already is not sent a second time, so that a loop by whatever way ends where it began.
package dns
