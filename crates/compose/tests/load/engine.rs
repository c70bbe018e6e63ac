//! What is handed to the engine beyond a plain container: hooks, namespaces of neighbours, mounts, endpoints, devices.

use crate::folder::{Folder, web};

#[test]
fn hooks_reach_the_model_with_their_environment() {
    let folder = web(
        "post_start:\n  - command: chown -R app /data\n    user: root\n    privileged: true\n    working_dir: /data\n    environment: {LEVEL: 3, TOKEN: , UNSET: }\npre_stop:\n  - command: [sh, -c, drain]\n    environment: [A=b, TOKEN, UNSET]\n",
    )
    .variable("TOKEN", "t");
    assert_eq!(folder.complaints(), "");
    let container = folder.web().container;
    insta::assert_json_snapshot!(container, @r#"
    {
      "post_start": [
        {
          "command": [
            "chown",
            "-R",
            "app",
            "/data"
          ],
          "user": "root",
          "privileged": true,
          "working_dir": "/data",
          "environment": {
            "LEVEL": "3",
            "TOKEN": "t"
          }
        }
      ],
      "pre_stop": [
        {
          "command": [
            "sh",
            "-c",
            "drain"
          ],
          "environment": {
            "A": "b",
            "TOKEN": "t"
          }
        }
      ]
    }
    "#);
}

#[test]
fn a_hook_without_a_command_is_refused() {
    let complaints = web("post_start: [{command: []}]").complaints();
    assert!(complaints.contains("error: a hook needs a command"), "{complaints}");
}

/// A file that people use at their desks runs here unchanged.
#[test]
fn what_is_for_another_program_is_only_remarked_upon() {
    let folder = web("attach: false\ndevelop: {watch: [{path: ., action: rebuild}]}");
    insta::assert_snapshot!(folder.complaints(), @r"
    ");
    folder.app();
}
