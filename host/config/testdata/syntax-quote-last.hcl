host {
  owner = "team"
}
provider "acme" {
  config {
    api_key = "sk-live-0123456789"
    region = "eu
  }
}
server {
  workdir = "/srv/agent"
}
