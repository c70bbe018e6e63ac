//! The mistakes that people make in Compose files, and what they then read. Every one is found at its line, with the key,
//! the reason and what to write instead. The snapshot is reviewed like code.

use std::fmt::Write;

use crate::folder::Folder;

#[test]
fn typical_mistakes_are_explained_where_they_are() {
    let (mut text, mut without_a_way_out) = (String::new(), Vec::new());
    for (mistake, compose) in MISTAKES {
        let loaded = Folder::with(compose).load();
        assert!(loaded.app.is_none(), "{mistake}");
        for complaint in loaded.diagnostics.iter().filter(|complaint| complaint.is_error()) {
            assert!(complaint.place.is_some(), "{mistake}: has no place: {complaint}");
            let says = ["must be", "write"].iter().any(|word| complaint.message.contains(word));
            if !says && complaint.hint.is_none() && complaint.related.is_empty() {
                without_a_way_out.push(complaint.to_string());
            }
        }
        let complaints: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
        writeln!(text, "## {mistake}\n\n{}\n", complaints.join("\n")).unwrap();
    }
    insta::assert_snapshot!(text);
    assert!(without_a_way_out.is_empty(), "{}", without_a_way_out.join("\n"));
}

const MISTAKES: &[(&str, &str)] = &[
    ("A line one space too far left", "services:\n  web:\n    image: nginx\n   ports:\n      - 80:80\n"),
    ("A line too far right", "services:\n  web:\n    image: nginx\n      restart: always\n"),
    ("A tab", "services:\n  web:\n\timage: nginx\n"),
    ("A key without a colon", "services:\n  web\n    image: nginx\n"),
    (
        "A key at the top level that belongs into a service",
        "services:\n  web:\n    image: nginx\nports:\n  - 80:80\n",
    ),
    ("A misspelt key", "services:\n  web:\n    image: nginx\n    prots:\n      - 80:80\n"),
    (
        "A misspelt key further down",
        "services:\n  web:\n    image: nginx\n    healthcheck:\n      test: curl -f localhost\n      intervall: 30s\n",
    ),
    (
        "A key of another tool",
        "services:\n  web:\n    image: nginx\n    deploy:\n      resources:\n        limits:\n          cpu: '0.5'\n          mem: 50M\n",
    ),
    ("A mapping where a list is needed", "services:\n  web:\n    image: nginx\n    ports:\n      http: 80\n"),
    ("A list where a mapping is needed", "services:\n  - web:\n      image: nginx\n"),
    (
        "A number where text is needed",
        "services:\n  web:\n    image: nginx\n    user: 1000\n    command: 5\n",
    ),
    (
        "A port that is none",
        "services:\n  web:\n    image: nginx\n    ports:\n      - 80:http\n      - 99999:80\n",
    ),
    (
        "A duration without a unit",
        "services:\n  web:\n    image: nginx\n    stop_grace_period: 30\n    healthcheck: {test: [CMD, x], interval: 5 minutes}\n",
    ),
    ("A size that is none", "services:\n  web:\n    image: nginx\n    mem_limit: lots\n"),
    (
        "A volume that is not defined",
        "services:\n  web:\n    image: nginx\n    volumes:\n      - dat:/data\nvolumes:\n  data:\n",
    ),
    ("A network that is not defined", "services:\n  web:\n    image: nginx\n    networks: [backend]\n"),
    ("A secret that is not defined", "services:\n  web:\n    image: nginx\n    secrets: [password]\n"),
    (
        "A dependency that is no service",
        "services:\n  web:\n    image: nginx\n    depends_on: [databse]\n  database: {image: postgres}\n",
    ),
    (
        "A circle",
        "services:\n  web: {image: nginx, depends_on: [api]}\n  api: {image: api, depends_on: [web]}\n",
    ),
    ("A required variable", "services:\n  web:\n    image: nginx:${TAG:?say which version}\n"),
    ("A variable that is not closed", "services:\n  web:\n    image: nginx:${TAG\n"),
    ("A quote that is not closed", "services:\n  web:\n    image: \"nginx\n    restart: always\n"),
    (
        "A bracket that is not closed",
        "services:\n  web:\n    image: nginx\n    ports: [80, 81\n    restart: always\n",
    ),
    ("A key given twice", "services:\n  web:\n    image: nginx\n    ports: ['80:80']\n    image: httpd\n"),
    ("An anchor that is not there", "services:\n  web:\n    <<: *base\n    image: nginx\n"),
    (
        "A merge of what is no mapping",
        "x-ports: &ports [80, 81]\nservices:\n  web:\n    <<: *ports\n    image: nginx\n",
    ),
    (
        "Text that begins with a star",
        "services:\n  web:\n    image: nginx\n    environment:\n      ALLOWED: *\n",
    ),
    ("Text with a colon", "services:\n  web:\n    image: nginx\n    command: echo note: this\n"),
    ("A list behind its key", "services:\n  web:\n    image: nginx\n    ports: - 80:80\n"),
    (
        "A backslash in double quotes",
        "services:\n  web:\n    image: nginx\n    command: \"grep \\d+ file\"\n",
    ),
    ("Only a version", "version: \"3\"\n"),
    ("Neither image nor build", "services:\n  web:\n    ports: ['80:80']\n"),
    ("A service of a file of the first format", "web:\n  image: nginx\n"),
    (
        "A condition that is none",
        "services:\n  web:\n    image: nginx\n    depends_on: {db: {condition: healthy}}\n  db: {image: postgres}\n",
    ),
    ("A policy that is none", "services:\n  web:\n    image: nginx\n    restart: on-fail\n"),
    (
        "A colon in a list of variables",
        "services:\n  web:\n    image: nginx\n    environment:\n      - A: 1\n",
    ),
    (
        "What a cluster cannot do",
        "services:\n  web:\n    image: nginx\n    network_mode: bridge\n    isolation: hyperv\n    pull_policy: daily\n",
    ),
    (
        "Several at once",
        "services:\n  web:\n    imag: nginx\n    ports: [0]\n    depends_on: [dbb]\n  db:\n    image: postgres\n    volumes: ['pg:/data']\n    restart: sometimes\n",
    ),
];
