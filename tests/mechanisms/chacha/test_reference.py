import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.chacha import reference


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "stream"),
    [  # RFC 8439, appendix A.1, test vectors 1 to 5
        (bytes(32), 0, bytes(12), "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
                                  "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
        (bytes(32), 1, bytes(12), "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
                                  "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
        (bytes(31) + b"\1", 1, bytes(12), "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
                                          "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
        (b"\0\xff" + bytes(30), 2, bytes(12), "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
                                              "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
        (bytes(32), 0, bytes(11) + b"\2", "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
                                          "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"),
    ],
)  # fmt: skip
def test_the_key_stream_matches_the_test_vectors_of_the_rfc(key, counter, nonce, stream):
    start = counter + (int.from_bytes(nonce[:4], "little") << 32)
    words = reference.block_words(key + nonce[4:], start, 1)
    assert words.T.astype("<u4").tobytes().hex() == stream


@settings(max_examples=50, deadline=None)
@given(material=st.binary(min_size=40, max_size=40), low=st.integers(0, 2**32 - 9), high=st.integers(0, 2**32 - 1))
def test_the_key_stream_matches_an_independent_implementation(material, low, high):
    nonce = low.to_bytes(4, "little") + high.to_bytes(4, "little") + material[32:]
    expected = Cipher(algorithms.ChaCha20(material[:32], nonce), mode=None).encryptor().update(bytes(8 * 64))
    assert reference.block_words(material, low + (high << 32), 8).T.astype("<u4").tobytes() == expected


@given(start=st.integers(0, 2**64 - 1), blocks=st.integers(1, 20), skipped=st.integers(0, 19))
def test_later_blocks_match_their_counter_even_past_its_lower_half(start, blocks, skipped):
    skipped = min(skipped, blocks - 1)
    material = bytes(range(40))
    whole = reference.block_words(material, start, blocks)
    assert np.array_equal(whole[:, skipped:], reference.block_words(material, start + skipped, blocks - skipped))


def test_the_smallest_and_the_largest_word_give_the_ends_of_the_tail():
    words = np.zeros((16, 2), dtype=np.uint32)
    words[:, 1] = 2**32 - 1
    words[2::3] = 0
    numbers = reference.singles(words, 20).reshape(10, 2)
    assert np.allclose(numbers[0::2, 0], np.sqrt(2 * np.log(2.0**65)), rtol=1e-5)
    assert (numbers[:, 1] == 0).all()
    assert np.isfinite(numbers).all()
