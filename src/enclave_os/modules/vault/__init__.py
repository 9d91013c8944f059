"""The vault: secrets and keys that only tokens and attested enclaves open, and an audit of who did. docs/vault.md.

policy             who may do what: one pure evaluator
policy_document    its rules as operators and owners write them
turns              changes of one path come one after the other
access             who asks: by token, by evidence for this session, or both; and what the rules say
secrets, record    what is stored and how
rows               theirs and the keys': found, listed, written
transit, keyring   keys that are used here and do not leave
audit              every decision, hash-chained, durable before its answer goes out
expiry             what is over leaves the store
*_routes           the same over HTTP
"""
