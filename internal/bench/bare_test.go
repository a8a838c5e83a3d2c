package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
	"github.com/berth-dev/berth/shared/provider"
)

// bare is what is left without berth: a plugin process, run by go-plugin as it comes, and the generated stubs. It
// checks nothing, converts nothing, undoes nothing and notices nothing.
type bare struct {
	process      *plugin.Client
	provider     pb.ProviderClient
	housekeeping pb.HousekeepingClient
}

// startBare needs a standard input that does not end: see lendStdin.
func startBare(path, config string, mtls bool) (*bare, error) {
	process := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: provider.Handshake(), VersionedPlugins: provider.ClientPlugins(),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, AutoMTLS: mtls,
		Cmd: exec.Command(path), Logger: hclog.NewNullLogger(),
	})
	protocol, err := process.Client()
	if err != nil {
		return nil, err
	}
	conn := protocol.(*plugin.GRPCClient).Conn
	setup := pb.NewSetupClient(conn)
	if _, err := setup.Describe(context.Background(), &pb.DescribeRequest{}); err != nil {
		process.Kill()
		return nil, err
	}
	if _, err := setup.Configure(context.Background(), &pb.ConfigureRequest{ConfigJson: []byte(config)}); err != nil {
		process.Kill()
		return nil, err
	}
	return &bare{process: process, provider: pb.NewProviderClient(conn), housekeeping: pb.NewHousekeepingClient(conn)}, nil
}

// lendStdin gives this process a standard input that does not end before it is given back. go-plugin passes it on to the
// plugin, which takes its end for the end of the host.
func lendStdin() (giveBack func(), err error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	own := os.Stdin
	os.Stdin = reader
	return func() {
		os.Stdin = own
		reader.Close()
		writer.Close()
	}, nil
}

// connect makes the calls of a connect that finds no sandbox, and returns the id of the one it made.
func (p *bare) connect(ctx context.Context, session string) (sandboxID string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	server := &pb.Server{
		Command: []string{"action-server", "--port", "{port}"}, Port: 8000,
		Env: map[string]string{"SESSION_API_KEY": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
		Health: &pb.HealthCheck{
			Paths: []string{"/alive"}, JsonFields: map[string]string{"status": "ok"}, Timeout: durationpb.New(5 * time.Second),
		},
	}
	_, err = p.provider.Attach(ctx, &pb.AttachRequest{
		Session: session, Owner: owner, Server: server, Lifetime: durationpb.New(lifetime),
	})
	if status.Code(err) != codes.NotFound {
		return "", fmt.Errorf("Attach did not answer that there is none, but %v", err)
	}
	made, err := p.provider.Create(ctx, &pb.CreateRequest{
		Session: session, Owner: owner, Attempt: session, Server: server, Lifetime: durationpb.New(lifetime),
	})
	if err != nil {
		return "", err
	}
	id := made.GetSandbox().GetId()
	started, err := p.provider.StartServer(ctx, &pb.StartServerRequest{Session: session, Owner: owner, SandboxId: id, Server: server})
	if err != nil {
		return id, err
	}
	answer, err := p.provider.Ping(ctx, &pb.PingRequest{
		Session: session, Owner: owner, SandboxId: id, Endpoint: started.GetEndpoints().GetServer(), Health: server.GetHealth(),
	})
	if err == nil && answer.GetStatus() != pb.PingStatus_PING_STATUS_ALIVE {
		err = fmt.Errorf("the server of %s is %s", id, answer.GetStatus())
	}
	return id, err
}

func (p *bare) destroy(ctx context.Context, sandboxID string) error {
	_, err := p.housekeeping.Destroy(ctx, &pb.DestroyRequest{Owner: owner, SandboxId: sandboxID})
	return err
}
