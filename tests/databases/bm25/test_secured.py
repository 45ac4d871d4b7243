"""A cluster with TLS and credentials: a real node behind a proxy that asks for both."""

import base64
import datetime
import http.client
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from remembrandt.databases.bm25 import Bm25Config, Bm25Document, ElasticsearchLoader, open_bm25
from remembrandt.errors import ConfigError, ServiceError

pytestmark = pytest.mark.elasticsearch

API_KEY = "c2VjcmV0LWtleQ=="
USER, PASSWORD = "painter", "s3cret/:@"
ACCEPTED = {f"ApiKey {API_KEY}", "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    return folder / "ca.pem", folder / "key.pem"


@pytest.fixture
def secured_url(elasticsearch_node, certificate) -> Iterator[str]:
    """Address of a TLS proxy before the node, which answers 401 without one of the accepted credentials."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") not in ACCEPTED:
                self.reply(401, {"X-Elastic-Product": "Elasticsearch", "Content-Type": "application/json"}, b"{}")
                return
            connection = http.client.HTTPConnection("127.0.0.1", elasticsearch_node.port)
            connection.request(self.command, self.path, body, {**self.headers, "Host": "node"})
            answer = connection.getresponse()
            self.reply(answer.status, dict(answer.headers), answer.read())
            connection.close()

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = headers.get("content-length", len(body)) if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def load_and_search(config: Bm25Config, index: str) -> list[int]:
    loader = ElasticsearchLoader(config, index)
    loader.create(2)
    loader.write([Bm25Document(0, "blue tree"), Bm25Document(1, "red fox")])
    info = loader.finish(2)
    searcher = open_bm25(info, None, None, config)
    ids = searcher.search(["red fox"], 1).ids.ravel().tolist()
    searcher.close()
    loader.delete()
    loader.close()
    return ids


@pytest.mark.parametrize(
    "credentials",
    [
        {"ELASTICSEARCH_API_KEY": API_KEY},
        {"ELASTICSEARCH_USERNAME": USER, "ELASTICSEARCH_PASSWORD": PASSWORD},
    ],
)
def test_credentials_and_authority_come_from_the_environment(monkeypatch, secured_url, certificate, credentials):
    for name, value in {**credentials, "ELASTICSEARCH_CA_CERTS": str(certificate[0])}.items():
        monkeypatch.setenv(name, value)

    assert load_and_search(Bm25Config(url=secured_url, replicas=0), "secured-environment") == [1]


def test_credentials_may_stand_in_the_configuration_and_in_the_url(secured_url, certificate):
    inside = secured_url.replace("https://", "https://painter:s3cret%2F%3A%40@")
    common = {"replicas": 0, "ca_certs": str(certificate[0])}

    assert load_and_search(Bm25Config(url=secured_url, api_key=API_KEY, **common), "secured-key") == [1]
    assert load_and_search(Bm25Config(url=inside, **common), "secured-url") == [1]


def test_certificates_can_be_accepted_unseen(secured_url):
    config = Bm25Config(url=secured_url, api_key=API_KEY, verify_certs=False, replicas=0)

    assert load_and_search(config, "secured-unseen") == [1]


def test_an_unknown_authority_is_one_line_that_says_what_to_set(secured_url):
    loader = ElasticsearchLoader(Bm25Config(url=secured_url, api_key=API_KEY), "secured")

    with pytest.raises(ServiceError, match=r"certificate that is not trusted here: set bm25\.ca_certs"):
        loader.ping()


def test_wrong_credentials_are_one_line_that_does_not_show_them(secured_url, certificate):
    config = Bm25Config(url=secured_url, username=USER, password="guessed", ca_certs=str(certificate[0]))

    with pytest.raises(ServiceError, match=r"refuses the credentials \(401\)") as caught:
        ElasticsearchLoader(config, "secured").ping()

    assert "guessed" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_authority_file_is_named(secured_url):
    with pytest.raises(ConfigError, match=r"nowhere\.pem does not exist"):
        ElasticsearchLoader(Bm25Config(url=secured_url, ca_certs="/tmp/nowhere.pem"), "secured")
