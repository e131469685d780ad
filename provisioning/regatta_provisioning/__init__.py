"""Identity and trust: enrolment, certificates, tokens, keys, and installing the service."""
