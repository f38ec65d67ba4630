//! Profiles that come with the program, from published numbers.

use super::{Profile, ProfileError};
use crate::nearest;

const TEXTS: [(&str, &str); 5] = [
    ("desktop-radeon", include_str!("../../profiles/desktop-radeon.toml")),
    ("krackan", include_str!("../../profiles/krackan.toml")),
    ("phoenix", include_str!("../../profiles/phoenix.toml")),
    ("strix-halo", include_str!("../../profiles/strix-halo.toml")),
    ("strix-point", include_str!("../../profiles/strix-point.toml")),
];

/// Names of all shipped profiles.
pub fn shipped_names() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().map(|(name, _)| *name)
}

/// A shipped profile by its name.
pub fn shipped(name: &str) -> Result<Profile, ProfileError> {
    let Some((name, text)) = TEXTS.iter().find(|(known, _)| *known == name) else {
        return Err(ProfileError::Unknown {
            got: name.to_owned(),
            known: shipped_names().collect::<Vec<_>>().join(", "),
            near: nearest(name, shipped_names()).map(str::to_owned),
        });
    };
    Profile::parse(&format!("profile {name}"), text)
}
