server {
  command = ["serve", "--port, "{port}"]
  port = 80
}
