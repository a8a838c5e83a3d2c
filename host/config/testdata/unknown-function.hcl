provider "acme" {
  config {
    api_key = getenv("ACME_API_KEY")
    region  = upper("eu")
  }
}
