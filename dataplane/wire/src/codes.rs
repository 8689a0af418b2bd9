//! Numbers and flag sets of the wire that have names: newtypes, so that an unknown value is a value like any
//! other and who receives it decides.

/// A newtype over an integer of the wire with its known values.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $number:expr, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$value_doc])* #[doc = concat!("`", $text, "`")] pub const $value: Self = Self($number);)*

            /// The name in the protocol's text, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some($text),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}

/// A set of flags over an integer of the wire with its known bits.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $bit:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$value_doc])* #[doc = concat!("`", $text, "`")] pub const $value: Self = Self(1 << $bit);)*
            /// Every known flag.
            pub const ALL: Self = Self(0 $(| 1 << $bit)*);

            /// All flags of `other` are set.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These and those of `other`.
            #[inline(always)]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// These, and those of `other` if `wanted`.
            #[inline(always)]
            pub const fn with_if(self, wanted: bool, other: Self) -> Self {
                if wanted { self.with(other) } else { self }
            }

            /// These without those of `other`.
            #[inline(always)]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut left = *self;
                $(if left.has(Self::$value) {
                    write!(f, "{} ", $text)?;
                    left = left.without(Self::$value);
                })*
                write!(f, "{:#x}", left.0)
            }
        }
    };
}

pub(crate) use {codes, flags};
