"""Masked aggregation: the server learns the sum of what sites send, and nothing else.

The protocol is the active variant of Bonawitz et al., *Practical Secure Aggregation for
Privacy-Preserving Machine Learning* (CCS 2017, https://eprint.iacr.org/2017/281), on a complete graph
or, for large cohorts, on a sparse one after Bell et al., *Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead* (CCS 2020, https://eprint.iacr.org/2020/704). Added to it: every message is
signed with a pinned key, everything is bound to one hash of the round's terms, and each step that
cannot be taken back is written down before it leaves the site, once.

======================  =====================================================================
module                  what
======================  =====================================================================
``terms``               what a round is: cohort, threshold, lanes, expiry; its hash, the context
``fixed``               numbers become integers of a ring, and sums of them become numbers again
``shamir``, ``graph``   secret sharing; who shares with whom
``keys``                key agreement, key derivation, sealing, signatures
``masks``               integers under masks, chunk by chunk, and the sum without them
``messages``            what is said, and the bytes that are signed
``policy``, ``ledger``  what a site agrees to; what it has done and never does twice
``site``, ``server``    the two sides as state machines
``inprocess``           both sides in one process, with real cryptography
======================  =====================================================================
"""
