"""Settings as an operator meets them: the example file, `config show` and `config check`."""

from __future__ import annotations

import errno
import re
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from pydantic import BaseModel

from deploy.configuration import effective, example_file, warnings_of
from dicom_node.settings import CONFIGURATION_FILE
from tests.dicom_node.certificates import PAST, Authority
from worker.settings import Destination, DestinationTls, Settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "covariance.toml"


@pytest.fixture
def read(monkeypatch, tmp_path):
    """`read(text)` makes settings from a file with that text, and from nothing else."""

    def make(text: str) -> Settings:
        file = tmp_path / "covariance.toml"
        file.write_text(text)
        monkeypatch.setenv(CONFIGURATION_FILE, str(file))
        return Settings()

    return make


def test_the_example_is_the_one_that_the_command_writes():
    """The example in the repository is in step with the settings."""
    assert EXAMPLE.read_text() == example_file()


def test_the_example_holds_the_defaults(read):
    """The example, as it stands, changes nothing."""
    assert read(EXAMPLE.read_text()) == Settings.model_construct(
        **{name: field.default for name, field in Settings.model_fields.items()}
    )


def test_the_example_names_every_setting():
    """No setting is left out of the example, switched on or off."""
    text = EXAMPLE.read_text()
    sections = [f.default for f in Settings.model_fields.values() if isinstance(f.default, BaseModel)]
    for section in [*map(type, sections), Destination]:
        for name, field in section.model_fields.items():
            assert re.search(rf"^#?{name} = ", text, re.MULTILINE), f"{section.__name__}.{name}"
            assert field.description, f"{section.__name__}.{name} says nothing"


def test_what_is_switched_off_in_the_example_can_be_switched_on(read):
    """Every line of the example is valid TOML with usable values."""
    text = re.sub(r"^#(?! )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    (destination,) = read(text).destinations
    assert destination.name == "pacs"


def test_settings_in_force_are_toml_that_reads_back(read):
    """`config show` prints what can be used again."""
    settings = read('[node]\nport = 104\n[[destinations]]\nname="a"\nae_title="A"\nhost="h"\nport=1\n')
    shown = tomllib.loads(effective(settings))
    assert shown["node"]["port"] == 104
    assert shown["destinations"][0]["ae_title"] == "A"


def test_tables_within_tables_read_back(read):
    """Bound callers and the TLS of a destination are shown as TOML that means the same."""
    text = (
        '[node]\ncallers = [{ ae_title = "CT1", addresses = ["10.0.0.5", "10.1.0.0/16"] }]\n'
        '[[destinations]]\nname="a"\nae_title="A"\nhost="h"\nport=1\ntls={ authorities = "ca.pem" }\n'
    )
    settings = read(text)
    assert settings.destinations[0].tls == DestinationTls(authorities=Path("ca.pem"))
    shown = read(effective(settings))
    assert (shown.node, shown.destinations) == (settings.node, settings.destinations)


def test_the_hash_key_is_not_shown(read):
    """The key that stands between the audit and its patients is not printed."""
    assert "hidden" not in effective(read('[database]\npatient_hash_key="hidden"\n'))


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hidden@h/0",  # pragma: allowlist secret
        "redis://:hidden@h:6379/0",
        "rediss://user:hid:hidden@h/0",
        "postgresql+psycopg://u:hid@hidden@h/db",  # pragma: allowlist secret
        "postgresql+psycopg://u:hid/hidden@h/db",
        "postgresql+psycopg://u:hid#hid?hidden@h/db",
        "postgresql+psycopg://u@h/db?password=hidden",
        "postgresql+psycopg://u@h/db?sslmode=require&sslPassword=hidden&application_name=a",
        "redis://h/0?password=hidden",
        "sentinel://:hidden@h1:26379;sentinel://:hidden@h2:26379",
    ],
)
def test_no_password_in_a_url_is_shown(read, url):
    """However a password stands in a URL, escaped or not, no part of it is printed, and the host is."""
    shown = tomllib.loads(effective(read(f'[database]\nurl = "{url}"\n')))["database"]["url"]
    assert "hid" not in shown
    assert re.search(r"\bh2?[:/]", shown)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////data/a:b@c/ledger.sqlite3",
        "redis+socket:///run/valkey.sock?virtual_host=0",
        "postgresql+psycopg://user@h:5432/db?sslmode=require",
    ],
)
def test_a_url_without_a_password_is_shown_as_it_is(read, url):
    """What is no secret stays readable."""
    assert f'url = "{url}"' in effective(read(f'[database]\nurl = "{url}"\n'))


def test_what_may_not_be_reached_is_one_sentence(invoke, tmp_path, monkeypatch):
    """A service account that may not enter a directory is told so; Python raises there, before 3.14."""
    file = tmp_path / "my.toml"
    file.write_text(f'[spool]\npath = "{tmp_path}/locked/spool"\n')

    def denied(ask):
        def answer(self, *arguments, **options):
            if "locked" in self.parts:
                raise PermissionError(errno.EACCES, "Permission denied")
            return ask(self, *arguments, **options)

        return answer

    for name in ("exists", "is_file"):
        monkeypatch.setattr(Path, name, denied(getattr(Path, name)))
    for arguments in (
        ["config", "check", file],
        ["--config", tmp_path / "locked" / "c.toml", "config", "show"],
    ):
        done = invoke(*arguments)
        assert (done.exit_code, type(done.exception)) == (2, SystemExit)
        assert "locked" in done.output + done.stderr


def test_check_says_what_is_there(invoke, tmp_path):
    """A file that can work is confirmed with exit code 0."""
    file = tmp_path / "my.toml"
    file.write_text("[node]\nport = 104\n")
    done = invoke("config", "check", file)
    assert done.exit_code == 0, done.output
    assert "model bundle" in done.stdout


@pytest.mark.parametrize(
    ("zone", "setting", "warned"),
    [("UTC", "", True), ("UTC", "Asia/Tokyo", False), ("Europe/London", "", False)],
)
def test_a_machine_in_utc_is_told_of(monkeypatch, zone, setting, warned):
    """Most servers run in UTC and most films say no time zone: results would be hours off, unnoticed."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        pacs = {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 104}
        settings = Settings(destinations=[pacs], report={"time_zone": setting} if setting else {})
        assert any("report.time_zone" in one for one in warnings_of(settings)) == warned
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[node]\nprot = 104\n", "node.prot"),
        ("[node]\nport = 70000\n", "node.port"),
        ("[nodes]\nport = 104\n", "nodes"),
        ("[node\n", "cannot be read"),
        ('[worker]\nbundle = "nowhere"\n', "nowhere"),
        ('[spool]\npath = "/etc/hostname/spool"\n', "spool.path"),
        ('[database]\nurl = "mysql://h/d"\n', "database.url"),
        ('[[destinations]]\nname = "a"\n', "destinations.0"),
        ("[tls]\nenabled = true\n", "tls/authorities.pem"),
        ("[node]\nplain = false\n", "no port is open"),
        ('[report]\ntime_zone = "Mars/Utopia"\n', "report.time_zone"),
        (
            '[node]\ncallers = [{ ae_title = "A", addresses = ["10.0.0.5/8"] }]\n',
            "node.callers.0.addresses.0",
        ),
        (
            '[[destinations]]\nname="a"\nae_title="A"\nhost="h"\nport=1\ntls={authorities="nobody.pem"}\n',
            "nobody.pem",
        ),
        (
            '[audit]\nsyslog_host = "h"\nsyslog_authorities = "nowhere.pem"\n',
            "A certificate or key of [audit]",
        ),
        ('[worker]\nbundle_sha256 = "short"\n', "worker.bundle_sha256"),
        ('[worker]\nengine = "openvino"\nengine_precision = "int8"\n', "has no eight-bit network"),
        ('[worker]\nengine_precision = "int8"\n', 'needs engine "openvino"'),
    ],
)
def test_check_says_what_cannot_work(invoke, tmp_path, text, names):
    """What cannot work is named in one sentence, with exit code 2 and no traceback."""
    file = tmp_path / "my.toml"
    file.write_text(text)
    done = invoke("config", "check", file)
    assert done.exit_code == 2
    assert names in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_check_confirms_tls(invoke, tmp_path):
    """Certificates that can be used are confirmed."""
    files = Authority(tmp_path).issue().files
    file = tmp_path / "my.toml"
    lines = [f'{name} = "{path}"' for name, path in files.items()]
    file.write_text("\n".join(["[tls]", "enabled = true", *lines]))
    done = invoke("config", "check", file)
    assert done.exit_code == 0, done.output
    assert "port 2762" in done.stdout


@pytest.fixture
def check_lists(invoke, tmp_path):
    """`check_lists(content)` checks settings whose revocation lists are these bytes, of `authority`."""

    def run(authority: Authority, content: bytes) -> Result:
        crl = tmp_path / "revoked.pem"
        crl.write_bytes(content)
        files = {**authority.issue().files, "crl": crl}
        file = tmp_path / "my.toml"
        file.write_text("\n".join(["[tls]", "enabled = true", *[f'{k} = "{v}"' for k, v in files.items()]]))
        return invoke("config", "check", file)

    return run


def test_check_says_until_when_lists_are_good(check_lists, tmp_path):
    """Each list is told with its end."""
    authority = Authority(tmp_path)
    until = datetime(2096, 2, 29, 12, 0, tzinfo=UTC)
    done = check_lists(authority, authority.revoke(authority.issue().certificate, until=until))
    assert done.exit_code == 0, done.output
    assert "good until 2096-02-29 12:00 UTC (1 revoked)" in done.stdout


def test_check_refuses_a_list_that_ended(check_lists, tmp_path):
    """A list that ended lets nobody in: that is an error of the file, with its date."""
    authority = Authority(tmp_path)
    done = check_lists(authority, authority.revoke(until=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), since=PAST))
    assert done.exit_code == 2
    assert "ended at 2026-01-02 03:04 UTC" in done.stdout


def test_check_refuses_lists_that_are_not_ours(check_lists, tmp_path):
    """A list of an authority that is not in the file, and a file that is none."""
    (tmp_path / "other").mkdir()
    other, authority = Authority(tmp_path / "other"), Authority(tmp_path)
    for content, said in ((other.revoke(), "no certificate of that authority"), (b"x", "no revocation list")):
        done = check_lists(authority, content)
        assert done.exit_code == 2
        assert said in done.stdout


def test_check_connect_says_that_a_peer_is_away(invoke, tmp_path):
    """A destination that does not answer is a failure of today, exit code 1, not of the file."""
    file = tmp_path / "my.toml"
    file.write_text('[[destinations]]\nname="away"\nae_title="AWAY"\nhost="127.0.0.1"\nport=1\n')
    assert invoke("config", "check", file).exit_code == 0
    done = invoke("config", "check", "--connect", file)
    assert done.exit_code == 1
    assert "AWAY at 127.0.0.1:1" in done.stdout
