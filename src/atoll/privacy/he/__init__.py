"""Encrypted aggregation: the server adds up what it cannot read (CKKS).

The sites share a key pair; the server holds the public half only. It adds ciphertexts, and any site
opens the sum. The scheme is that of Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of
Approximate Numbers", ASIACRYPT 2017, https://eprint.iacr.org/2016/421, as SEAL implements it and TenSEAL
brings it to Python (``pip install 'atoll[he]'``).

**What a shared key does not protect against.** Every site holds the key that opens the sum, and with it
any single update: a site that gets hold of another's ciphertext reads it, and the server has them all.
So this hides updates from a server that keeps to itself, not from a server and a site together. Masked
aggregation (:mod:`atoll.privacy.secagg`) withstands up to a third of the sites with the server; keys that
open in shares would too, and :class:`~atoll.privacy.he.opening.Opening` is where they fit.

**What a site checks before it opens anything.** A server could ask for one site's ciphertext to be opened as
though it were a sum, or for one that it has made to learn the key from the answer. So every ciphertext comes
with a tag, and tags fit the sum of exactly the ciphertexts that they came with.

===============  ========================================================
module           what
===============  ========================================================
``parameters``   modulus and scale for a number of sites and a precision
``contexts``     the public half and the secret half, as different types
``sealed``       vectors in slots: encrypt, add
``whole``        integers in slots, so that an encrypted sum is exact
``opening``      who opens a sum, and how many that takes
``tags``         a sum that proves to the sites of what it is the sum
``sharing``      one secret key for all sites, through a server that must not have it
``rounds``       what is said in a round, as arrays
===============  ========================================================
"""
