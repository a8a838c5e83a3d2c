server {
  port = 80 80
}
host {
  owner = "a" "b"
}
