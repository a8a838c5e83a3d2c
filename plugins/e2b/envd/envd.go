// Package envd is the wire form of envd, the daemon inside every E2B sandbox that runs processes. It speaks the
// Connect protocol; clients and servers are connect's generic ones, over these messages.
package envd

//go:generate sh -c "cd ../../.. && go tool -modfile=tools/go.mod buf generate plugins/e2b/envd --template plugins/e2b/envd/buf.gen.yaml"

// Port is where envd listens in every sandbox.
const Port = 49983

// The procedures, as paths under envd's URL.
const (
	ProcedureStart      = "/process.Process/Start"
	ProcedureConnect    = "/process.Process/Connect"
	ProcedureList       = "/process.Process/List"
	ProcedureSendSignal = "/process.Process/SendSignal"
	// ProcedureStreamInput writes to a process's standard input, as ProcedureSendInput does. envd logs the whole request of
	// every procedure but the messages of this one, and E2B collects the logs.
	ProcedureStreamInput = "/process.Process/StreamInput"
	ProcedureSendInput   = "/process.Process/SendInput"
)
