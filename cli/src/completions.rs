//! `chancery completions`: what a shell needs to complete our command lines.

use clap::{Args, CommandFactory as _};

use crate::args::Chancery;
use crate::exit::Outcome;
use crate::output;

/// Print the completions of a shell. For bash: `source <(chancery completions bash)`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  chancery completions bash > ~/.local/share/bash-completion/completions/chancery")]
pub(crate) struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Chancery::command(), "chancery", &mut script);
        output::print_raw(&script)
    }
}
