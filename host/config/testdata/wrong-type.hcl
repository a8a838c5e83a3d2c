server {
  preset  = "custom"
  command = "serve --port {port}"
  port    = "eighty"
  ports   = { code = "many" }
  env     = { MODE = null }
}

provider "acme" {
  mtls = "sometimes"
  env  = "HTTPS_PROXY=canary-proxy"
  config {
    api_key = ["canary-in-a-list"]
    count   = 1.5
    debug   = "perhaps"
    zones   = { a = "b" }
    tags    = ["a"]
  }
}
