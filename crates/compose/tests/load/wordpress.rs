//! The example that a newcomer starts first, in full.

use crate::folder::Folder;

#[test]
fn the_example_loads_without_a_complaint() {
    let compose = include_str!("../../../../examples/wordpress/compose.yaml");
    let folder = Folder::with(compose);
    let loaded = folder.load();
    assert_eq!(loaded.diagnostics, []);
    insta::assert_json_snapshot!(loaded.app.unwrap(), @r#"
    {
      "name": "app",
      "services": {
        "db": {
          "image": "mariadb:11.8",
          "container": {
            "environment": {
              "MARIADB_DATABASE": "wordpress",
              "MARIADB_PASSWORD": "wordpress",
              "MARIADB_RANDOM_ROOT_PASSWORD": "1",
              "MARIADB_USER": "wordpress"
            },
            "mounts": [
              {
                "source": {
                  "type": "volume",
                  "volume": "db_data"
                },
                "target": "/var/lib/mysql"
              }
            ]
          },
          "networks": {
            "default": {}
          },
          "healthcheck": {
            "test": [
              "CMD",
              "healthcheck.sh",
              "--connect",
              "--innodb_initialized"
            ],
            "interval": 5000,
            "timeout": 5000,
            "retries": 12,
            "start_period": 10000
          }
        },
        "wordpress": {
          "image": "wordpress:6.8",
          "container": {
            "environment": {
              "WORDPRESS_DB_HOST": "db:3306",
              "WORDPRESS_DB_NAME": "wordpress",
              "WORDPRESS_DB_PASSWORD": "wordpress",
              "WORDPRESS_DB_USER": "wordpress"
            },
            "mounts": [
              {
                "source": {
                  "type": "volume",
                  "volume": "wordpress_data"
                },
                "target": "/var/www/html"
              }
            ]
          },
          "depends_on": {
            "db": {
              "condition": "service_healthy",
              "required": true
            }
          },
          "networks": {
            "default": {}
          },
          "ports": [
            {
              "target": 80,
              "published": 8080
            }
          ]
        }
      },
      "networks": {
        "default": {}
      },
      "volumes": {
        "db_data": {},
        "wordpress_data": {}
      }
    }
    "#);
}
