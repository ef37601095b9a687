"""Secrets as files: how containers hand over what must not stand in an environment or in a settings file."""

from __future__ import annotations

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.settings import CONFIGURATION_FILE, SECRETS_DIRECTORY, NodeSettings, read_settings
from worker.settings import Settings, load_settings


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    """A directory that the settings take secrets from."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv(SECRETS_DIRECTORY, str(folder))
    monkeypatch.delenv(CONFIGURATION_FILE, raising=False)
    return folder


def test_a_file_sets_the_setting_that_it_is_named_after(secrets):
    """`database__url` is `[database] url`, without the newline that an editor has put at its end."""
    (secrets / "database__url").write_text("postgresql+psycopg://a:b@db/covariance\n")
    (secrets / "DATABASE__PATIENT_HASH_KEY").write_text("of our own")
    database = load_settings().database
    assert database.url == "postgresql+psycopg://a:b@db/covariance"
    assert database.patient_hash_key.get_secret_value() == "of our own"


def test_a_secret_goes_before_the_file_and_after_the_environment(secrets, monkeypatch, tmp_path):
    """Arguments, environment, secrets, file: the first that names a setting is taken, key by key."""
    file = tmp_path / "covariance.toml"
    file.write_text('[queue]\nurl = "redis://file"\nprefix = "file:"\n[database]\nurl = "sqlite:///file"\n')
    monkeypatch.setenv(CONFIGURATION_FILE, str(file))
    (secrets / "queue__url").write_text("redis://secret")
    (secrets / "database__url").write_text("sqlite:///secret")
    monkeypatch.setenv("COVARIANCE_DATABASE__URL", "sqlite:///environment")
    settings = load_settings()
    assert settings.queue.url == "redis://secret"
    assert settings.queue.prefix == "file:"
    assert settings.database.url == "sqlite:///environment"


def test_the_hidden_folders_of_kubernetes_are_passed_over(secrets):
    """Kubernetes mounts links to files in `..data`; only the links are settings."""
    (secrets / "..data").mkdir()
    (secrets / "..data" / "queue__url").write_text("redis://mounted")
    (secrets / "queue__url").symlink_to(secrets / "..data" / "queue__url")
    assert load_settings().queue.url == "redis://mounted"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("databse__url", b"x", "databse__url is no setting"),
        ("password", b"x", "password is no setting"),
        ("database__urll", b"hunter2", "database.urll"),
        ("database__url", b"\xff\xfe", "not UTF-8"),
        ("database__url", b"x" * 70_000, "longer than"),
    ],
)
def test_what_cannot_be_a_secret_is_said_without_it(secrets, name, content, sentence):
    """A misnamed or broken secret is one sentence, and its content is not in it."""
    (secrets / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_a_directory_that_is_not_there_is_an_error(secrets, monkeypatch):
    """Every default in silence would be the wrong database."""
    monkeypatch.setenv(SECRETS_DIRECTORY, str(secrets / "nowhere"))
    with pytest.raises(ConfigurationError, match="no directory of secrets"):
        load_settings()


def test_the_node_alone_passes_over_the_secrets_of_others(secrets):
    """`NodeSettings` knows no database, and a directory shared with the worker must not stop it."""
    (secrets / "database__url").write_text("sqlite:///x")
    (secrets / "queue__url").write_text("redis://secret")
    assert read_settings(NodeSettings).queue.url == "redis://secret"
    assert isinstance(load_settings(), Settings)
