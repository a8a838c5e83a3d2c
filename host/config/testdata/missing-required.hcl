provider "acme" {}

provider "acme-eu" {
  plugin = "acme"
  config {
    size = "large"
  }
}
