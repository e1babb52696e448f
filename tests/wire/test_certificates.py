"""TLS: version 1.3 alone, one certificate alone."""

import hashlib
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509

from atoll.core.errors import AuthError, StorageError
from atoll.wire.certificates import (
    certificate_fingerprint,
    client_context,
    create_certificate,
    secure,
    server_context,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    create_certificate(certificate, key, ["atoll.example", "127.0.0.1", "::1"], now=time.time())
    return certificate, key


@pytest.fixture
def listening():
    """Start a TLS server that answers each greeting with one; gives its port."""
    open_sockets, threads = [], []

    def start(context):
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(10)
        open_sockets.append(server)

        def serve():
            try:
                plain, _ = server.accept()
                with plain:
                    plain.settimeout(10)
                    with context.wrap_socket(plain, server_side=True) as secured:
                        heard = secured.recv(10)
                        received.append(heard)
                        if heard:
                            secured.sendall(b"hello")
            except OSError:
                received.append(None)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return server.getsockname()[1]

    received = []
    start.received = received
    yield start
    for thread in threads:
        thread.join(10)
    for server in open_sockets:
        server.close()


def dial(port):
    return socket.create_connection(("127.0.0.1", port), 10)


def test_a_certificate_names_its_hosts_and_is_known_by_its_fingerprint(made):
    certificate, key = made
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["atoll.example"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1", "::1"]
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert certificate_fingerprint(certificate) == hashlib.sha256(der).digest()
    assert key.stat().st_mode & 0o777 == 0o600
    assert found.public_key().curve.name == "secp256r1"
    found.verify_directly_issued_by(found)


def test_a_key_is_not_written_over(made):
    with pytest.raises(StorageError, match="already"):
        create_certificate(*made, ["a"], now=time.time())


def test_the_pinned_certificate_is_spoken_to_in_tls_1_3(made, listening):
    port = listening(server_context(*made))
    with secure(
        dial(port), "127.0.0.1", certificate_fingerprint(made[0]), client_context()
    ) as connection:
        connection.sendall(b"hi")
        assert connection.recv(10) == b"hello"
        assert connection.version() == "TLSv1.3"


def test_nothing_is_said_to_the_holder_of_another_certificate(made, listening, tmp_path):
    other = create_certificate(tmp_path / "c", tmp_path / "k", ["127.0.0.1"], now=time.time())
    port = listening(server_context(*made))
    plain = dial(port)
    with pytest.raises(AuthError, match="showed another certificate") as caught:
        secure(plain, "127.0.0.1", other, client_context())
    shown = certificate_fingerprint(made[0]).hex()
    assert shown in caught.value.message.replace(" ", "")
    assert other.hex() in caught.value.remedy.replace(" ", "")
    assert plain.fileno() == -1
    while not listening.received:
        time.sleep(0.01)
    assert listening.received[0] in (b"", None)


def test_an_older_tls_is_refused_by_the_client(made, listening):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(*made)
    port = listening(old)
    with pytest.raises(ssl.SSLError):
        secure(dial(port), "127.0.0.1", certificate_fingerprint(made[0]), client_context())


def test_an_older_tls_is_refused_by_the_server(made, listening):
    port = listening(server_context(*made))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    plain = dial(port)
    with pytest.raises(ssl.SSLError):
        secure(plain, "127.0.0.1", certificate_fingerprint(made[0]), old)


def test_files_that_are_no_certificate_are_refused(made, tmp_path):
    (tmp_path / "x").write_text("nonsense")
    with pytest.raises(StorageError, match="holds no certificate"):
        certificate_fingerprint(tmp_path / "x")
    with pytest.raises(StorageError, match="cannot be read"):
        certificate_fingerprint(tmp_path / "missing")
    for pair in ((tmp_path / "x", made[1]), (made[0], tmp_path / "x"), (tmp_path / "no", made[1])):
        with pytest.raises(StorageError, match="cannot be used"):
            server_context(*pair)
    create_certificate(tmp_path / "c", tmp_path / "k", ["a"], now=time.time())
    with pytest.raises(StorageError, match="cannot be used"):
        server_context(made[0], tmp_path / "k")
