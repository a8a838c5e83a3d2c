provider "acme" {
  labels = {
    team = "blue
    cost = "12"
  }
  config {
    api_key = "sk-live-0123456789"
  }
}
