host {
  secret = "correct-horse-battery   # kept here for now
  owner  = "team"
}
