"""Judges and teachers elsewhere: https with an authority of one's own, and fields of requests that only such a server knows."""

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_judge import MODEL, Server, find_flaw

from soundrl.fapo.records import Verdict
from soundrl.genrm.pool.endpoint import OURS, extra_fields
from soundrl.genrm.pool.judge import EndpointJudge


def signed(name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None):
    """A certificate and its key: an authority's own, or of a server on this machine, signed by `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(names if issuer else x509.BasicConstraints(ca=True, path_length=0), critical=not issuer)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


@pytest.fixture
def encrypted(tmp_path):
    """A judge behind https on loopback, and the file of the authority that has signed its certificate."""
    authority = signed("authority of the test", None)
    certificate, key = signed("judge of the test", authority)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "authority.pem").write_bytes(authority[0].public_bytes(serialization.Encoding.PEM))
    own = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *plain)
    (tmp_path / "judge.pem").write_bytes(own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "judge.pem")
    server = Server(find_flaw)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    yield server, tmp_path / "authority.pem"
    server.stop()


@pytest.mark.parametrize(("trusted", "host"), [(True, "localhost"), (False, "127.0.0.1")])
def test_https_with_an_authority_of_ones_own(encrypted, tmp_path, trusted, host):
    server, authority = encrypted
    row = {"id": "r", "problem": "Sum?", "steps": ["Start.", "So 2+2=5."], "final_answer_correct": True, "label": 1}
    (tmp_path / "bench.json").write_text(json.dumps([row, row | {"id": "s", "steps": ["Fine."], "label": -1}]))
    command = [sys.executable, "-m", "soundrl.genrm.evaluate", "--data", str(tmp_path / "bench.json"), "--out", str(tmp_path / "out")]
    command += ["--urls", f"https://{host}:{server.port}/v1", "--model", MODEL]
    environment = {key: value for key, value in os.environ.items() if key != "SSL_CERT_FILE"} | {"SOUNDRL_GENRM_TOKEN": "canary-80"}
    environment |= {"SSL_CERT_FILE": str(authority)} if trusted else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if trusted:
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["bench"]["f1"]["value"] == 1.0
        assert set(server.authorizations) == {"Bearer canary-80"}
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and server.bodies == []
        assert "has a certificate that is not trusted here" in done.stderr and "$SSL_CERT_FILE" in done.stderr


def test_fields_of_ones_own_reach_the_server_beside_ours():
    fields = extra_fields('{"top_p": 0.95, "top_k": 20, "chat_template_kwargs": {"enable_thinking": false}}', "--body")
    server = Server(find_flaw)
    try:
        with EndpointJudge(server.url, MODEL, deadline=60.0, extra=fields, max_tokens=77) as judge:
            assert judge.critique("Sum?", ["2+2=5"], "4").result(60) == Verdict.flawed(0)
        (body,) = server.bodies
        assert body.items() >= fields.items() and (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 77, 0.0)
    finally:
        server.stop()


@pytest.mark.parametrize("name", sorted(OURS))
def test_fields_of_ours_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^--policy-body must not hold {name}: leave it out") as refused:
        extra_fields(json.dumps({"top_p": 0.9, name: 1}), "--policy-body")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", "top_p=0.9", '"x"', "1", "null", '{"top_p": NaN}', "{" * 100_000, "{'top_p': 0.9}"])
def test_what_is_no_object_is_refused_in_one_short_line(text):
    with pytest.raises(ValueError, match="^--body ") as refused:
        extra_fields(text, "--body")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250
    assert extra_fields(" ", "--body") == extra_fields("{}", "--body") == {}
