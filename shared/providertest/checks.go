package providertest

import (
	"context"

	"github.com/berth-dev/berth/shared/provider"
)

// stage is when a check runs.
type stage int

const (
	inBetween  stage = iota // all at the same time
	atTheStart              // one after the other; the rest makes no sense without them
	afterwards              // one after the other, when what was in between is over
	atTheEnd                // one after the other, at last
)

// check is one line of the contract, put to the test.
type check struct {
	group, name string
	// contract is what the contract demands, in one sentence.
	contract string
	// fix tells the author how to fix a failure.
	fix   string
	run   func(ctx context.Context, t *trial) error
	at    stage
	needs []provider.Capability // the check is skipped without them
}

func (c check) id() string { return c.group + "/" + c.name }

func (c check) result(status Status) Result {
	return Result{Group: c.group, Name: c.name, Status: status, Contract: c.contract}
}

const (
	lists    = provider.CapabilityList
	renews   = provider.CapabilityRenew
	suspends = provider.CapabilitySuspend
	destroys = provider.CapabilityDestroy
	logs     = provider.CapabilityLogs
)

func can(capabilities ...provider.Capability) []provider.Capability { return capabilities }

// checks are all there are, in the order of reports. The functions are in the files named after the groups.
var checks []check

func init() { // the checks lead back to this list
	checks = []check{
		{"process", "handshake", "The first line on standard output is the handshake: protocol 1, gRPC, and with mTLS a certificate.",
			"Print nothing before the handshake. Listen in PLUGIN_UNIX_SOCKET_DIR. Log to standard error.", handshake, atTheStart, nil},
		{"describe", "identity", "Describe answers before Configure, with a name of [a-z][a-z0-9-]*, a version and a summary.",
			"Fill in name, version and summary. Describe must need neither configuration nor credentials.", identityIsSane, atTheStart, nil},
		{"configure", "accepts", "Configure accepts the configuration that the run was given.",
			"Look at the detail: either the configuration is wrong or the plugin refuses a good one.", configureAccepts, atTheStart, nil},

		{"process", "health-service", "The gRPC health service says SERVING for the service \"plugin\".",
			"Serve grpc.health.v1.Health and set the service \"plugin\" to SERVING.", healthService, inBetween, nil},
		{"process", "ends-with-stdin", "The process exits when its standard input ends.",
			"Read standard input to its end in the background, then exit: it is how a plugin notices that its host is gone.", endsWithStdin, inBetween, nil},
		{"process", "ends-on-shutdown", "The process exits when plugin.GRPCController/Shutdown is called.",
			"Serve plugin.GRPCController with Shutdown, and exit after it.", endsOnShutdown, inBetween, nil},
		{"process", "ends-on-sigterm", "The process exits on SIGTERM.",
			"Do not block or ignore SIGTERM.", endsOnSigterm, inBetween, nil},
		{"process", "ends-in-a-call", "The process exits when it is told to in the middle of a call.",
			"Cancel the calls under way and give them two seconds at most.", endsInACall, inBetween, nil},

		{"process", "strange-client", "With mTLS a client is refused that shows another certificate than the host's, or none.",
			"Demand a client certificate, and trust PLUGIN_CLIENT_CERT alone.", strangeClient, inBetween, nil},

		{"describe", "schema", "Every attribute has a type and documentation, is named once, and its default is of its type.",
			"Correct the attribute that the detail names.", schemaIsSane, inBetween, nil},
		{"describe", "stable", "Describe gives the same answer at any time.",
			"Make the description a constant.", describeIsStable, inBetween, nil},
		{"describe", "capabilities", "What is declared is implemented, and what is not declared answers UNIMPLEMENTED.",
			"Declare a capability exactly when its call works.", capabilitiesMatch, inBetween, nil},

		{"configure", "required", "Configure without a required attribute is refused with INVALID_ARGUMENT, naming the attribute.",
			"Put a BadRequest violation with the attribute's name into the status.", refusesMissing, inBetween, nil},
		{"configure", "wrong-type", "Configure with a value of the wrong type is refused with INVALID_ARGUMENT, naming the attribute.",
			"Check the JSON type of every attribute, and name the one that is wrong.", refusesWrongType, inBetween, nil},
		{"configure", "one-of", "Configure with a value that is not among the allowed ones is refused with INVALID_ARGUMENT, naming the attribute.",
			"Check the value against the one_of that Describe announces.", refusesOneOf, inBetween, nil},
		{"configure", "not-json", "Configure with something that is not a JSON object is refused with INVALID_ARGUMENT.",
			"Refuse what cannot be parsed; do not fall back to defaults.", refusesNotJSON, inBetween, nil},
		{"configure", "once", "A second Configure is refused, and the first one stays.",
			"Answer FAILED_PRECONDITION when the plugin is configured already.", configuresOnce, inBetween, nil},
		{"configure", "before-calls", "Calls before Configure are refused, and the plugin lives on.",
			"Answer FAILED_PRECONDITION until Configure has succeeded.", refusesBeforeConfigure, inBetween, nil},

		{"create", "answer", "Create answers with a running sandbox: id, session, owner, attempt, origin CREATED.",
			"Wait in Create until the sandbox runs, and fill in every field.", createAnswers, inBetween, nil},
		{"create", "labels", "List shows the sandbox with its session, owner, attempt and labels.",
			"Put all of them on the sandbox, where any process of the plugin can read them back.", createLabels, inBetween, can(lists)},
		{"create", "lifetime", "The sandbox ends by itself after the lifetime: expires_at says so.",
			"Arm the cloud's own timer in Create, and report its end.", createLifetime, inBetween, nil},
		{"create", "once", "Create for a session that has a sandbox adopts it: the same id, origin ATTACHED.",
			"Look for the session's sandbox by name or label before making one.", createOnce, inBetween, nil},
		{"create", "once-at-once", "Several Creates for one session at the same time make one sandbox.",
			"Use a name that the cloud keeps unique; or look again after creating, and remove the younger.", createOnceAtOnce, inBetween, nil},
		{"create", "once-across", "Several Creates for one session at the same time from two processes make one sandbox.",
			"A lock in memory is not enough: use a name that the cloud keeps unique; or look again after creating, and let the younger give way.", createAcross, inBetween, nil},
		{"create", "names", "A session of 128 characters of A-Z a-z 0-9 . _ : @ / + = - gets a sandbox of its own, and is found and listed by it.",
			"Where the cloud's names or labels are shorter or stricter, derive the name with a hash (in Go: SandboxName), and keep the whole session on the sandbox.", createNames, inBetween, nil},
		{"create", "lost-answer", "A Create to which the cloud's answer gets lost leaves one sandbox that it answers with, or none that its error does not name.",
			"After a request that may have worked, look for the attempt's label before asking again or giving up.", createLostAnswer, inBetween, can(lists)},
		{"create", "lifetime-ends", "A sandbox is gone soon after its lifetime, without anybody's doing.",
			"Arm the cloud's own timer in Create; reporting an end is not enough.", lifetimeEnds, inBetween, nil},
		{"create", "adopts", "Another process of the plugin finds the session's sandbox.",
			"Keep nothing in memory: derive the name from owner and session, or look by label.", createAdopts, inBetween, nil},
		{"create", "owners", "Two owners with the same session get two sandboxes, and see only their own.",
			"Make the owner part of the name, and filter listings by it.", createSeparatesOwners, inBetween, nil},

		{"attach", "missing", "Attach to a session that never had a sandbox answers NOT_FOUND.",
			"NOT_FOUND is for a look-up that succeeded and found nothing.", attachMissing, inBetween, nil},
		{"attach", "creates-nothing", "Attach never makes a sandbox.",
			"Leave creating to Create.", attachCreatesNothing, inBetween, can(lists)},
		{"attach", "running", "Attach to a running sandbox, with its id and without, answers with the same sandbox, origin ATTACHED.",
			"Look it up by name or label when the request has no id.", attachRunning, inBetween, nil},
		{"attach", "wakes", "Attach to a suspended sandbox wakes it: the same sandbox, running, origin WOKEN.",
			"Resume it, wait until it runs, and say that it was woken.", attachWakes, inBetween, can(suspends)},
		{"attach", "gone", "Attach to a destroyed sandbox answers NOT_FOUND, with its id and without.",
			"A tombstone in the cloud's listing is no sandbox.", attachGone, inBetween, can(destroys)},
		{"attach", "endpoints", "Attach to a sandbox whose server runs answers with the endpoint that opens it, whatever process started it.",
			"Fill in endpoints as StartServer would: without them a host cannot tell that the server is alive.", attachEndpoints, inBetween, nil},
		{"attach", "keeps-life", "Attach with a short lifetime brings the end of a running sandbox no nearer.",
			"Move the end to the later of the present one and now plus the lifetime, or leave it.", attachKeepsLife, inBetween, nil},
		{"attach", "other-session", "Attach with the id of another session's sandbox is refused.",
			"Compare the session's label too: ALREADY_EXISTS, or NOT_FOUND.", attachOtherSession, inBetween, nil},
		{"attach", "foreign", "Attach with the id of another owner's sandbox is refused, also for the same session.",
			"Compare the owner's label before giving a sandbox out: ALREADY_EXISTS, or NOT_FOUND.", attachForeign, inBetween, nil},
		{"attach", "denied", "With wrong credentials Attach answers PERMISSION_DENIED, not NOT_FOUND.",
			"Map 401 and 403 of the cloud to PERMISSION_DENIED.", attachDenied, inBetween, nil},
		{"attach", "unreachable", "When the cloud cannot be reached Attach answers UNAVAILABLE, not NOT_FOUND.",
			"Only an answer of the cloud can be NOT_FOUND; a failed look-up is UNAVAILABLE.", attachUnreachable, inBetween, nil},

		{"cloud", "attach", "A cloud that answers 500, 403, 429 or with a page that is not the API's makes Attach UNAVAILABLE, PERMISSION_DENIED and RESOURCE_EXHAUSTED, never NOT_FOUND.",
			"Only the cloud's own \"no such sandbox\" is NOT_FOUND: a host creates another sandbox upon it.", cloudAttach, inBetween, nil},
		{"cloud", "retry-after", "A rate limit's error says how long the cloud asked to wait.",
			"Put the answer's Retry-After into RetryInfo (in Go: Error.RetryAfter).", cloudRetryAfter, inBetween, nil},
		{"cloud", "list", "List fails when the cloud does: it is never empty for that.",
			"Return the error of every page: a host takes what is not listed for gone.", cloudCalls("List", "List of a session"), inBetween, can(lists)},
		{"cloud", "destroy", "Destroy fails when the cloud does: only \"no such sandbox\" is success.",
			"Return every error but the cloud's own \"no such sandbox\": what is taken for gone is paid for until somebody notices.", cloudCalls("Destroy"), inBetween, can(destroys)},
		{"cloud", "start", "StartServer fails when the cloud does, and not with NOT_FOUND.",
			"Look the sandbox up when something in it cannot be reached, and tell a failed look-up from one that found nothing.", cloudCalls("StartServer"), inBetween, nil},
		{"cloud", "ping", "Ping says neither GONE, STOPPED nor EXITED when the cloud fails.",
			"Answer NOT_YET when it cannot be found out why the server does not answer.", cloudPing, inBetween, nil},

		{"start", "endpoint", "StartServer answers with a URL and headers that open the server.",
			"Return the address as callers reach it, and every header the way to it asks for.", startEndpoint, inBetween, nil},
		{"start", "declared-headers", "Describe names every header that an endpoint asks for.",
			"Name it in endpoint_headers (in Go: Info.EndpointHeaders): only then can a host refuse a server that needs the same one before anything is made.", startDeclaredHeaders, inBetween, nil},
		{"start", "private", "Without its headers the URL opens nothing; one that asks for none is allowed by the server, or by an address on this machine where there is no cloud.",
			"Make the port private and return the header that opens it, unless the server allows a public one.", startPrivate, inBetween, nil},
		{"start", "extra-private", "The same holds for the extra ports.",
			"Make every port of extra_ports private, and return the header that opens it.", startExtraPrivate, inBetween, nil},
		{"start", "extra-ports", "StartServer answers with an endpoint for every extra port, different from the server's.",
			"Publish every port of extra_ports, under its name.", startExtraPorts, inBetween, nil},
		{"start", "placeholders", "{port} and {port.NAME} in command and environment become the ports, and PORT is set.",
			"Expand the server with the ports that were granted (in Go: Server.Expand).", startPlaceholders, inBetween, can(logs)},
		{"start", "environment", "The server gets the words of its command and its variables exactly as they are given.",
			"Start the server without a shell in between, or quote for it; hand variables over in the cloud's own field, a file or a script's here-document.", startEnvironment, inBetween, can(logs)},
		{"start", "once", "A second StartServer starts no second server, and answers with the same URL.",
			"Look whether the server runs before starting it.", startOnce, inBetween, nil},
		{"start", "changed", "A StartServer with another command leaves a server that runs as it is.",
			"A sandbox has one server. Look whether any runs, not whether this one does.", startChanged, inBetween, nil},
		{"start", "foreign", "StartServer in another owner's sandbox is refused.",
			"Compare the owner's label before starting anything: ALREADY_EXISTS, or NOT_FOUND.", startForeign, inBetween, nil},
		{"start", "other-session", "StartServer in the sandbox of another session is refused.",
			"Compare the session's label too: ALREADY_EXISTS, or NOT_FOUND.", startOtherSession, inBetween, nil},
		{"start", "dies-at-once", "A server that dies at once is an error of StartServer with the reason SERVER_EXITED, or EXITED at a Ping soon after.",
			"Record that the server's process ended, where Ping finds it when the server does not answer.", startDiesAtOnce, inBetween, nil},
		{"start", "last-words", "That error or Ping has the server's exit code and its last lines.",
			"Write the server's output to a file and its exit code beside it, and report both.", startLastWords, inBetween, nil},
		{"start", "no-such-command", "A server whose command does not exist is an error of StartServer, or EXITED at a Ping soon after.",
			"Report a launch that failed. A shell that cannot find the command exits with 127: let Ping report that.", startNoSuchCommand, inBetween, nil},
		{"start", "gone", "StartServer in a destroyed sandbox answers NOT_FOUND.",
			"Map the cloud's \"no such sandbox\" to NOT_FOUND.", startGone, inBetween, can(destroys)},
		{"start", "suspended", "StartServer in a suspended sandbox works or answers FAILED_PRECONDITION: the sandbox is there.",
			"Tell a sandbox that sleeps from one that is gone.", startSuspended, inBetween, can(suspends)},

		{"ping", "alive", "Ping says alive once the server answers.",
			"Ask the health path at the endpoint, with its headers (in Go: provider.Probe).", pingAlive, inBetween, nil},
		{"ping", "early", "Until the server is up for the first time, no Ping says EXITED, STOPPED or GONE.",
			"A listing may lag behind: look the sandbox up by its id, and answer NOT_YET while that is not clear.", pingEarly, inBetween, nil},
		{"ping", "foreign", "Ping of another owner's sandbox tells nothing about it or its server.",
			"Compare the owner's label before looking: refuse the call, or answer NOT_YET, DENIED or GONE.", pingForeign, inBetween, nil},
		{"ping", "other-session", "Ping of another session's sandbox tells nothing about it or its server.",
			"Compare the session's label too.", pingOtherSession, inBetween, nil},
		{"ping", "json-fields", "A 2xx answer without the JSON fields asked for is \"not yet\". Text is compared as it is, numbers and booleans as JSON writes them.",
			"Read the body when json_fields is set.", pingJSONFields, inBetween, nil},
		{"ping", "paths", "The paths are asked in order, the next one only after a 404.",
			"Try paths[1] when paths[0] answers 404, and only then.", pingPaths, inBetween, nil},
		{"ping", "headers", "The endpoint's headers are on the request.",
			"Send Endpoint.headers as they are.", pingHeaders, inBetween, nil},
		{"ping", "once", "One Ping asks the server once.",
			"Do not retry inside Ping: the host repeats it.", pingOnce, inBetween, nil},
		{"ping", "redirect", "A redirect is denied, and not followed.",
			"Turn redirects off in the HTTP client: a login page answers 200.", pingRedirect, inBetween, nil},
		{"ping", "denied", "401 and 403 are denied.",
			"Map them to DENIED: waiting does not help.", pingDenied, inBetween, nil},
		{"ping", "not-yet", "404, 429, 5xx and a refused connection are \"not yet\" while the server runs.",
			"Map them to NOT_YET: the server may still be on its way.", pingNotYet, inBetween, nil},
		{"ping", "slow", "A server slower than the health check's timeout is \"not yet\", as soon as the timeout is over.",
			"Bound the request by HealthCheck.timeout.", pingSlow, inBetween, nil},
		{"ping", "exited", "Ping says EXITED when the server process ended, with its exit code.",
			"Look at the process when the server does not answer.", pingExited, inBetween, nil},
		{"ping", "stopped", "Ping says STOPPED when the sandbox is suspended.",
			"Look at the sandbox when the server does not answer.", pingStopped, inBetween, can(suspends)},
		{"ping", "wakes-nothing", "Ping leaves a suspended sandbox suspended.",
			"Send no request to a sandbox that wakes on requests once it is known to sleep.", pingWakesNothing, inBetween, can(suspends, lists)},
		{"ping", "gone", "Ping says GONE when the sandbox was destroyed.",
			"Look at the sandbox when the server does not answer.", pingGone, inBetween, can(destroys)},

		{"housekeeping", "destroy-twice", "Destroy of a sandbox that is gone already is success.",
			"Treat the cloud's \"no such sandbox\" as success.", destroyTwice, inBetween, can(destroys)},
		{"housekeeping", "destroy-foreign", "Destroy of another owner's sandbox is refused with ALREADY_EXISTS, and leaves it alone.",
			"Compare the owner's label before destroying.", destroyForeign, inBetween, can(destroys)},
		{"housekeeping", "renew-foreign", "Renew of another owner's sandbox is refused.",
			"Compare the owner's label before renewing.", renewForeign, inBetween, can(renews)},
		{"housekeeping", "suspend-foreign", "Suspend of another owner's sandbox is refused, and leaves it running.",
			"Compare the owner's label before suspending.", suspendForeign, inBetween, can(suspends)},
		{"housekeeping", "logs-foreign", "Logs of another owner's sandbox are refused.",
			"Compare the owner's label before reading.", logsForeign, inBetween, can(logs)},
		{"housekeeping", "list-session", "List of a session shows the sandboxes of that session alone.",
			"Filter by ListRequest.session where it is set.", listSession, inBetween, can(lists)},
		{"housekeeping", "list-after-destroy", "A destroyed sandbox leaves the listing, or is GONE there.",
			"Return from Destroy when the sandbox is gone, and leave tombstones out.", listAfterDestroy, inBetween, can(lists, destroys)},
		{"housekeeping", "list-complete", "List shows every sandbox of the owner, however many.",
			"Follow the cloud's pages to the last.", listComplete, inBetween, can(lists)},
		{"housekeeping", "renew", "Renew moves the end of the sandbox's life to now plus the lifetime, or as near as the cloud can, and answers with it.",
			"Set the cloud's timer anew, counted from now, and answer with the end that it then has.", renewMovesTheEnd, inBetween, can(renews)},
		{"housekeeping", "renew-holds", "A sandbox that was renewed outlives its first end.",
			"Set the cloud's own timer anew; answering with another end is not enough.", renewHolds, inBetween, can(renews)},
		{"housekeeping", "renew-ends", "A sandbox that was renewed is gone soon after its new end.",
			"Leave the cloud's timer armed.", renewEnds, inBetween, can(renews)},
		{"housekeeping", "suspend", "Suspend returns when the sandbox is suspended.",
			"Wait in Suspend until the cloud says that it has stopped.", suspendSuspends, inBetween, can(suspends)},
		{"housekeeping", "suspend-twice", "Suspend of a suspended sandbox is success.",
			"Return at once when it is suspended already.", suspendTwice, inBetween, can(suspends)},
		{"housekeeping", "logs", "Logs gives the server's last lines, oldest first, and no more than asked for.",
			"Return the end of the server's output, in order.", logsInOrder, inBetween, can(logs)},

		{"cancel", "create", "A Create that is cancelled leaves nothing behind.",
			"When the call is cancelled, remove what was made, in a context of its own.", cancelCreate, inBetween, can(lists)},
		{"cancel", "create-deadline", "A Create whose deadline passes ends soon, and leaves nothing behind that its error does not name.",
			"Stop at the deadline; remove what was made, or name it in sandbox_id.", createDeadline, inBetween, can(lists)},
		{"cancel", "attach", "An Attach that is cancelled leaves the sandbox as another Attach can find it.",
			"Never destroy in Attach, and hold no lock beyond the call.", cancelAttach, inBetween, can(suspends)},
		{"cancel", "start", "A StartServer that is cancelled can be repeated.",
			"Leave no half-started server and no lock behind.", cancelStart, inBetween, nil},
		{"cancel", "ping", "A Ping that is cancelled gives its request up.",
			"Bind the HTTP request to the call.", cancelPing, inBetween, nil},
		{"cancel", "ping-deadline", "A Ping ends soon after its deadline.",
			"Bound the HTTP request by the call's deadline.", pingDeadline, inBetween, nil},

		{"robust", "many-calls", "32 calls at once for several sessions all succeed.",
			"Calls come concurrently: protect what they share, and wait out the cloud's rate limit.", manyCalls, inBetween, nil},
		{"robust", "side-by-side", "32 calls run side by side: none waits for another.",
			"Serve calls concurrently: hold no lock while waiting, and allow 32 calls at a time.", sideBySide, inBetween, nil},
		{"robust", "garbage", "Requests that are not protobuf are answered with an error, and the plugin lives on.",
			"Let no exception of the decoder end the process.", garbage, inBetween, nil},
		{"robust", "oversized", "A request larger than 16 MiB is answered with an error, and the plugin lives on.",
			"Set the gRPC server's limit for received messages to 16 MiB.", oversized, inBetween, nil},
		{"robust", "large", "A request of 8 MiB with fields that the plugin does not know is served.",
			"Raise the gRPC server's limit for received messages, often 4 MiB, to 16 MiB; ignore unknown fields.", large, inBetween, nil},
		{"robust", "unknown-method", "A call that does not exist answers UNIMPLEMENTED, and the plugin lives on.",
			"Leave the answer to the gRPC library.", unknownMethod, inBetween, nil},

		{"end", "alive", "The plugin process lived through the run.",
			"Look at the end of its standard error.", stillAlive, atTheEnd, nil},
		{"end", "endpoint-lasts", "An endpoint without expires_at, or before it, still opens the server after a while.",
			"Say in expires_at when a token ends, or give one that lives as long as the sandbox.", endpointLasts, afterwards, nil},
		{"end", "nothing-left", "When everything was destroyed, nothing is left.",
			"Destroy must return when the sandbox is gone; List must show what is there. Remove what is left by hand.", nothingLeft, atTheEnd, nil},
		{"end", "silent", "Nothing is on standard output after the handshake.",
			"Log to standard error. Beware of libraries that print.", stdoutSilent, atTheEnd, nil},
		{"secrets", "processes", "No secret is in a command line, nor in the plugin's environment.",
			"Hand secrets to the server by environment or file; take the plugin's own from Configure.", secretsInProcesses, inBetween, nil},
		{"secrets", "errors", "No secret is in an error or in the reason of a Ping.",
			"Leave request headers, configuration values and URLs with tokens out of messages.", secretsInErrors, atTheEnd, nil},
		{"secrets", "stderr", "No secret is in what the plugin writes.",
			"Do not log configuration, headers or the server's environment.", secretsInOutput, atTheEnd, nil},
	}
}
