health {
  timeout = "3s"
}

health {
  timeout = "4s"
}

provider "acme" {
  config {
    api_key = "canary-one"
  }
  config {
    api_key = "canary-two"
  }
}

provider "acme" {}
