"""Proofs: two engines that share no code beyond the declarations, certificates for inequalities, and the ledger."""
