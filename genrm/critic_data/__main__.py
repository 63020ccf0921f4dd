"""Makes critic data from the command line: `python -m soundrl.genrm.critic_data planted|sampled …`."""

from soundrl.genrm.critic_data.critic_data import command

if __name__ == "__main__":
    command()
