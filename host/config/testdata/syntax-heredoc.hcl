provider "acme" {
  config {
    api_key = <<KEY
canary-in-an-open-heredoc
c2VjcmV0Y2FuYXJ5cw==
  }
}
