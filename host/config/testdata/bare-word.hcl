host {
  provider = acme
}

provider "acme" {
  config {
    api_key = canary-without-quotes
    region  = var.region
  }
}
