host {
  plugindir = "plugins"
}

health {
  timeuot = "3s"
}

provider "acme" {
  api_key = "canary-outside-the-config-block"
  sha265  = "0000"
  config {
    api_kye = "canary-under-a-misspelt-name"
    api_key = "canary-in-its-place"
  }
}
