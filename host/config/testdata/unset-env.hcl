host {
  owner = env("BERTH_OWNER_UNSET")
}

provider "acme" {
  config {
    api_key = env("ACME_KEY_UNSET")
    region  = env("canary-Where-A-Name-Belongs")
    size    = env("A", "b", "c")
  }
}
