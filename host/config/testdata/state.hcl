state {
  url   = "mysql://me:canary-password@db/berth"
  lease = "3s"
  path  = "records.db"
}

state {
  url   = "host=db password=canary-password dbname=berth"
  lease = "1h"
}

provider "acme" {
  config {
    api_key = "canary-key"
  }
}
