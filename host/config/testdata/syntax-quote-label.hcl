provider "acme {
  lifetime = "2h"
  config {
    api_key = "sk-live-0123456789"
  }
}
