provider {
}

provider "acme" "canary-label" {
}

provider "Acme Cloud" {
}

host "here" {
}
