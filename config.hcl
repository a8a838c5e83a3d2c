# The configuration of berth. As it is, berth does the same as without a file: sandboxes are processes on this machine.
# Lines that begin with "#|" are examples; remove these two characters to use them. Everything is explained in
# docs/configuration.md, and `berth config check` reports mistakes.

host {
  # Where plugins are. Default: "plugins" beside the berth executable.
  #| plugin_dir = "bin/plugins"

  # What berth remembers. Default: $XDG_STATE_HOME/berth or ~/.local/state/berth.
  #| state_dir = "/var/lib/berth"

  # The provider to use when --provider is not given. Needed once there are several.
  #| provider = "local"

  # What session keys are derived from. Set it, and the owner, when several machines serve the same sessions.
  #| secret = env("BERTH_SECRET")
  #| owner  = "my-team"

  # off, error, warn, info, debug or trace.
  log_level = "warn"
}

# Where the records of sessions and their sandboxes are. Default: a file in state_dir, for all berth processes of one
# machine. Several machines share a PostgreSQL database. When a host has not renewed its lease in time, others take over.
#| state {
#|   url   = env("BERTH_STATE_URL")
#|   lease = "30s"
#| }

# The action server of every sandbox. A preset sets a server's command, port, health path and key: action-server (the
# example in this repository), openhands, agent-server, swe-rex, or custom with a command and a port of your own.
server {
  preset = "action-server"
}

# How long to wait for that server. The first ping is sent at once, and the pauses between pings grow up to this
# interval.
health {
  timeout  = "120s"
  interval = "1s"
}

# Limits of the other steps.
timeouts {
  total  = "10m"
  create = "5m"
  start  = "60s"
  undo   = "30s"
}

# Each provider block is one plugin process. Its config block belongs to the plugin: `berth plugin describe NAME` lists
# its attributes.
provider "local" {}

# The clouds. Without a config block each takes its credentials from the environment variables its own tools use:
# DAYTONA_API_KEY, E2B_API_KEY, MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, RUNLOOP_API_KEY.
#| provider "daytona" {
#|   lifetime = "2h"
#|   config {
#|     api_key  = env("DAYTONA_API_KEY")
#|     snapshot = "my-snapshot"
#|   }
#|   server {
#|     port = 4444
#|   }
#| }

#| provider "e2b" {
#|   config {
#|     api_key  = env("E2B_API_KEY")
#|     template = "my-template"
#|   }
#| }

#| provider "modal" {
#|   config {
#|     token_id     = env("MODAL_TOKEN_ID")
#|     token_secret = env("MODAL_TOKEN_SECRET")
#|     image        = "docker.io/library/python:3.13"
#|   }
#| }

#| provider "runloop" {
#|   config {
#|     api_key   = env("RUNLOOP_API_KEY")
#|     blueprint = "my-blueprint"
#|   }
#|   # Another server in this cloud's sandboxes.
#|   server {
#|     preset = "openhands"
#|   }
#| }
