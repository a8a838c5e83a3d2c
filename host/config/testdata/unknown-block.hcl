sever {
  preset = "custom"
}

provider "acme" {
  confg {
    api_key = "canary-in-a-misspelt-block"
  }
  elsewhere {
  }
}
