provider "acme" {
  config {
    api_key = "canary-refused"
    size    = "large"
  }
}

provider "acme-eu" {
  plugin = "acme"
  config {
    api_key = <<-KEY
      canary-refused-heredoc
      canary-on-two-lines
    KEY
  }
}
