"""What carries gradients besides RPC: datagrams that nobody sends again, and links that lose packets."""
