"""Secret random numbers that are made on a GPU: a ChaCha20 key stream and what is drawn from it.

``stream.DeviceStream`` holds a key and a block counter on one device and draws from them. The arithmetic exists three
times: ``kernels`` (Triton, one fused pass), ``tensor_ops`` (plain torch operations, wherever Triton is missing) and
``reference`` (NumPy, the definition). All three give the same words. ``backends`` chooses between the first two and
compares the choice with the third before it is used.

Layout of one draw of ``size`` numbers: ``segment = ceil(size / p)`` blocks are used, of ``p`` numbers each, and number
``k`` of block ``b`` goes to index ``k * segment + b``, so that neighbouring threads write neighbouring numbers.

References:
    RFC 8439, "ChaCha20 and Poly1305 for IETF Protocols" (block function). The counter has 64 bits and the nonce 64, as
    in Bernstein 2008, "ChaCha, a variant of Salsa20": the words are those of RFC 8439 with the counter's upper half
    in place of the nonce's first word.
"""
