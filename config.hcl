# The configuration of berth. As it stands it does what berth does without any file: sandboxes are processes on this
# machine. Lines that begin with "#|" are examples; remove these two characters to use them. Everything is explained in
# docs/configuration.md, and `berth config check` says what is wrong.

host {
  # Where plugins are. Default: "plugins" beside the berth executable.
  #| plugin_dir = "bin/plugins"

  # What berth remembers. Default: $XDG_STATE_HOME/berth or ~/.local/state/berth.
  #| state_dir = "/var/lib/berth"

  # The provider to use when --provider is not given. Needed once there are several.
  #| provider = "local"

  # What session keys are derived from. Give it, and the owner, when several machines serve the same sessions.
  #| secret = env("BERTH_SECRET")
  #| owner  = "my-team"

  # off, error, warn, info, debug or trace.
  log_level = "warn"
}

# The records of who owns which sandbox. Default: a file in state_dir, for all berth processes of one machine. Several
# machines share a PostgreSQL database. A host that was not heard of for the length of a lease is replaced by others.
#| state {
#|   url   = env("BERTH_STATE_URL")
#|   lease = "30s"
#| }

# What is started in every sandbox. A preset knows a server's command, port, health path and key: action-server (the
# example in this repository), openhands, agent-server, swe-rex, or custom with a command and a port of your own.
server {
  preset = "action-server"
}

# How long to wait for that server. The first probe is sent at once, the next ones in quick succession, then at longer
# and longer intervals up to this one.
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
# what may stand in it.
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
