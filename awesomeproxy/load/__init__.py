"""The bundled load client: an open loop that counts every outcome."""
