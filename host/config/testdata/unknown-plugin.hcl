provider "acmee" {
  config {
    api_key = "canary-key"
  }
}

provider "mine" {
  plugin = "nothing-like-it"
}

provider "other" {
  path = "elsewhere/run"
}
