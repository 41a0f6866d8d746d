"""The search spaces that come with hwnas. They use only names that an outsider's space could use too."""
