"""The reference business server: conversations, agents, words, archive (contract: Business server)."""
