"""Secret random numbers made on a GPU: a ChaCha20 key stream, and the numbers drawn from it.

``stream.DeviceStream`` holds a key and a block counter on one device, and draws from them. The arithmetic has three
implementations: ``kernels`` (Triton, one fused pass), ``tensor_ops`` (plain torch operations, used without Triton) and
``reference`` (NumPy, the definition). All three produce the same words. ``backends`` chooses one of the first two and
compares it with the third before it is used.

Layout of one draw of ``size`` numbers: it uses ``segment = ceil(size / p)`` blocks of ``p`` numbers each, and number
``k`` of block ``b`` goes to index ``k * segment + b``, so that neighbouring threads write neighbouring numbers.

References:
    RFC 8439, "ChaCha20 and Poly1305 for IETF Protocols" (block function). Counter and nonce have 64 bits each, as in
    Bernstein 2008, "ChaCha, a variant of Salsa20": the words are those of RFC 8439 with the upper half of the counter
    in place of the nonce's first word.
"""
