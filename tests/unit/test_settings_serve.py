from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.cli import main
from kvtier.errors import SettingsError
from kvtier.settings import load_settings


def test_everything_of_a_server_can_be_set(tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(
        '[origin]\nbackend = "memory"\n[serve]\nhost = "0.0.0.0"\ntoken_file = "tokens"\n'
        'cert_file = "c"\nkey_file = "k"\nmetrics_port = 0\nmemory = "2 GiB"\ndrain = "1 min"\n'
    )
    serve = load_settings(config, ["serve.idle_timeout=1h"]).serve
    assert (serve.host, serve.token_file, serve.metrics_port) == ("0.0.0.0", Path("tokens"), 0)
    assert (serve.memory_bytes, serve.drain_s, serve.idle_timeout_s) == (2 << 30, 60, 3600)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port=65536", "serve.port is 65536: it must be from 0 to 65535"),
        ("metrics_port=-1", "serve.metrics_port is -1"),
        ("cert_file=c", "serve.key_file is missing: serve.cert_file needs it"),
        ("key_file=k", "serve.cert_file is missing: serve.key_file needs it"),
        ("client_ca_file=c", "serve.client_ca_file needs TLS"),
        ("connections_max=0", "serve.connections_max is 0: it must be from 1"),
        ("drain=0 s", "serve.drain is 0 ns: it must be from 1 ms"),
        ("memory=1 MiB", "serve.memory is 1 MiB: one frame_payload has 64 MiB"),
        ("frame_payload=512", "serve.frame_payload is 512 B: a page has 4 KiB"),
        ("spool=1 GiB", "serve.spool is 1 GiB: one upload has 64 GiB"),
        ("token=secret", "unknown key serve.token; did you mean serve.token_"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, [f"serve.{override}"])
    assert message in str(caught.value)


def test_one_place_of_tokens_is_enough() -> None:
    with pytest.raises(SettingsError, match=r"serve\.token_env: there is a serve\.token_file"):
        load_settings(None, ["serve.token_file=f", "serve.token_env=E"])


def test_the_command_line_refuses_clear_text_beyond_loopback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one\n")
    tokens.chmod(0o600)
    argv = ["serve", "--backend", "memory", "--port", "0", "--host", "0.0.0.0"]
    assert main([*argv, "--token-file", str(tokens)]) == 2
    assert "without TLS shows the tokens" in capsys.readouterr().err
