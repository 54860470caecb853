"""TLS towards clients and servers: certificates, their keys, and OpenSSL's contexts."""
