"""SCRAM-SHA-256: the published exchange comes out to the letter; whatever else a client sends, it is refused."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import pbkdf2_hmac, sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.scram import Exchange, Keys, ScramError, derive, prepare

SECRET = b"made for this test"
# RFC 7677, section 3
SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
CHALLENGE = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
VERIFIER = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

KEYS = derive("pencil", SALT, 4096)


def lookup(name: str) -> Keys | None:
    return KEYS if name in ("user", "a,b=c", "IX") else None


def exchange() -> Exchange:
    return Exchange(lookup, SECRET, NONCE)


class Client:
    """An independent client's side, as simple as can be."""

    def __init__(self, name: str, password: str, header: str = "n,,") -> None:
        self.header = header
        self.password = password
        self.bare = f"n={name},r=clientnonce"

    def first(self) -> bytes:
        return (self.header + self.bare).encode()

    def final(self, challenge: bytes, extension: str = "", nonce: str = "", header: str = "") -> bytes:
        """client-final, rightly signed; `nonce` and `header` where they are to be others than they should be."""
        fields = dict(field.split("=", 1) for field in challenge.decode().split(","))
        salted = pbkdf2_hmac("sha256", self.password.encode(), b64decode(fields["s"]), int(fields["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        channel = b64encode((header or self.header).encode()).decode()
        without = f"c={channel},r={nonce or fields['r']}{extension}"
        signature = hmac.digest(sha256(key).digest(), f"{self.bare},{challenge.decode()},{without}".encode(), "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        return f"{without},p={b64encode(proof).decode()}".encode()


def test_the_exchange_of_rfc_7677_comes_out_to_the_letter() -> None:
    server = exchange()
    assert server.begin(FIRST) == CHALLENGE
    assert server.finish(FINAL) == VERIFIER
    assert server.username == "user"


def test_a_wrong_password_is_refused() -> None:
    server = exchange()
    client = Client("user", "pencils")
    with pytest.raises(ScramError, match="password is wrong"):
        server.finish(client.final(server.begin(client.first())))


def test_a_user_that_does_not_exist_gets_the_same_salt_each_time_and_fails_at_the_end() -> None:
    client = Client("nobody", "pencil")
    servers = [exchange(), exchange()]
    challenges = [server.begin(client.first()) for server in servers]
    assert challenges[0] == challenges[1]
    assert b",i=15000" in challenges[0]
    for server, challenge in zip(servers, challenges, strict=True):
        with pytest.raises(ScramError, match="no such user"):
            server.finish(client.final(challenge))


def test_made_up_salts_differ_by_user_and_by_node() -> None:
    def salt(name: str, secret: bytes) -> bytes:
        return Exchange(lookup, secret, NONCE).begin(f"n,,n={name},r=x".encode()).split(b",")[1]

    assert len({salt("nobody", SECRET), salt("noone", SECRET), salt("nobody", b"another")}) == 3


def test_the_proof_of_the_all_zero_keys_that_stand_for_nobody_lets_nobody_in() -> None:
    server = Exchange(lambda _: None, SECRET, NONCE)
    challenge = server.begin(b"n,,n=nobody,r=x")
    without = b"c=biws,r=x" + NONCE.encode()
    signature = hmac.digest(bytes(32), b"n=nobody,r=x," + challenge + b"," + without, "sha256")
    with pytest.raises(ScramError):
        server.finish(without + b",p=" + b64encode(signature))


@pytest.mark.parametrize("header", ["n,,", "y,,", "n,a=user,"])
def test_a_client_without_channel_binding_or_that_names_itself_twice_is_let_in(header: str) -> None:
    server = exchange()
    client = Client("user", "pencil", header)
    assert server.finish(client.final(server.begin(client.first()))).startswith(b"v=")


def test_an_unknown_extension_of_client_final_is_signed_and_ignored() -> None:
    server = exchange()
    client = Client("user", "pencil")
    assert server.finish(client.final(server.begin(client.first()), ",x=unknown")).startswith(b"v=")


def test_the_right_proof_for_another_nonce_or_another_channel_is_refused() -> None:
    client = Client("user", "pencil")
    for nonce, header, problem in (("clientnonceold", "", "another nonce"), ("", "y,,", "another channel")):
        server = exchange()
        with pytest.raises(ScramError, match=problem):
            server.finish(client.final(server.begin(client.first()), nonce=nonce, header=header))


def test_a_name_with_a_comma_and_an_equals_sign_is_what_its_escapes_say() -> None:
    server = exchange()
    client = Client("a=2Cb=3Dc", "pencil")
    server.finish(client.final(server.begin(client.first())))
    assert server.username == "a,b=c"


def test_a_name_is_looked_up_as_saslprep_has_it() -> None:
    server = exchange()
    server.begin("n,,n=I\u00adX,r=x".encode())
    assert server.username == "IX"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=user",
        b"n,,r=x,n=user",
        b"n,,n=,r=x",
        b"n,,n=us=er,r=x",
        b"n,,n=us=2cer,r=x",
        b"n,,n=user,r=",
        b"n,,n=user,r=\xc3\xa9",
        b"n,,n=user,r=a\x07",
        b"n,,n=\xff,r=x",
        b"n,,n=us\x00er,r=x",
        b"n,,n=\xe2\x80\x8f,r=x",  # U+200F, a mark of direction
        b"n,,m=x,n=user,r=x",
        b"n,a=admin,n=user,r=x",
        b"n,b=user,n=user,r=x",
        b"x,,n=user,r=x",
        b"p=tls-unique,,n=user,r=x",
        b"n,,n=user,r=" + b"x" * 5000,
    ],
)
def test_an_ill_formed_client_first_is_refused(message: bytes) -> None:
    with pytest.raises(ScramError):
        exchange().begin(message)


def _changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda message: message.replace(old, new, 1)


@pytest.mark.parametrize(
    "change",
    [
        _changed(b"c=biws", b"c=eSws"),  # y,,
        _changed(b"c=biws", b"c=%%%%"),
        _changed(b"c=biws,", b""),
        _changed(b"r=rOpr", b"r=sOpr"),
        _changed(b"k0,", b","),
        _changed(b",p=", b",q="),
        _changed(b"p=dHzb", b"p=eHzb"),
        _changed(b"p=dHzb", b"p="),
        _changed(b"p=dHzb", b"p=\xc3\xa9"),
        lambda _: b"",
        lambda _: b",,",
        lambda message: message + b",x=more",
    ],
)
def test_a_client_final_that_differs_in_anything_is_refused(change: Callable[[bytes], bytes]) -> None:
    server = exchange()
    server.begin(FIRST)
    assert change(FINAL) != FINAL
    with pytest.raises(ScramError):
        server.finish(change(FINAL))


@given(st.binary(max_size=200) | st.text(alphabet="n,r=pcmya\u00ad\u200f=2C", max_size=60).map(str.encode), st.binary())
def test_whatever_a_client_sends_nothing_but_a_scram_error_is_raised(first: bytes, final: bytes) -> None:
    server = exchange()
    try:
        server.begin(first)
    except ScramError:
        server = exchange()
        server.begin(FIRST)
    with pytest.raises(ScramError):
        server.finish(final)


# RFC 4013, section 3
@pytest.mark.parametrize(
    ("text", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b")],
)
def test_saslprep_gives_the_examples_of_rfc_4013(text: str, prepared: str) -> None:
    assert prepare(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u0627\u0031", "a\u0627b", "\u0221"])
def test_saslprep_refuses_what_rfc_4013_and_3454_refuse(text: str) -> None:
    with pytest.raises(ValueError):
        prepare(text)
