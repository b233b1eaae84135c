"""What every example has as a program: errors, options, files, pictures and a device."""
