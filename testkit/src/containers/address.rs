//! Parsers of server addresses and image names, without I/O.

/// Returns the `host:port` of an `http` or `https` URL.
pub(super) fn of_url(url: &str) -> Result<String, String> {
    let (rest, port) = if let Some(rest) = url.strip_prefix("http://") {
        (rest, 80)
    } else if let Some(rest) = url.strip_prefix("https://") {
        (rest, 443)
    } else {
        return Err(format!(
            "is {url:?}; it must begin with http:// or https://"
        ));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return Err(format!("is {url:?}, which names no host"));
    }
    // Only a colon after the closing bracket of an IPv6 address starts a port.
    let has_port = match authority.rfind(':') {
        Some(colon) => authority.rfind(']').is_none_or(|bracket| colon > bracket),
        None => false,
    };
    Ok(if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{port}")
    })
}

/// Returns the first of a list of brokers if each of them has a port.
pub(super) fn first_broker(brokers: &str) -> Result<String, String> {
    let mut first = None;
    for broker in brokers.split(',').map(str::trim) {
        let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port
            .and_then(|(_, port)| port.parse::<u16>().ok())
            .is_none()
        {
            return Err(format!(
                "is {brokers:?}; it must be a list like host:9092,host:9092"
            ));
        }
        first.get_or_insert(broker);
    }
    first
        .map(str::to_owned)
        .ok_or_else(|| "is empty".to_owned())
}

/// The name of a Docker image, `[registry[:port]/]name[:tag]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageName {
    pub(super) name: String,
    pub(super) tag: String,
}

impl ImageName {
    pub(super) fn parse(image: &str) -> Result<Self, String> {
        // A colon before the last slash belongs to the registry's port.
        let from = image.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match image[from..].rfind(':') {
            Some(colon) => (&image[..from + colon], &image[from + colon + 1..]),
            None => (image, "latest"),
        };
        if name.is_empty() || tag.is_empty() || image.contains(char::is_whitespace) {
            return Err(format!("is {image:?}; it must be an image like name:tag"));
        }
        Ok(Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_host_and_port() {
        for (url, address) in [
            ("http://localhost:8000", "localhost:8000"),
            ("http://localhost:8000/", "localhost:8000"),
            ("http://db", "db:80"),
            (
                "https://dynamodb.eu-west-1.amazonaws.com",
                "dynamodb.eu-west-1.amazonaws.com:443",
            ),
            ("http://[::1]:8000", "[::1]:8000"),
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(of_url(url).as_deref(), Ok(address), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in ["localhost:8000", "http://", "ftp://db", ""] {
            assert!(of_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn brokers_have_ports() {
        assert_eq!(first_broker("a:1, b:2").as_deref(), Ok("a:1"));
        for brokers in ["", "a", "a:1,b", ":9092", "a:port"] {
            assert!(first_broker(brokers).is_err(), "{brokers}");
        }
    }

    #[test]
    fn an_image_is_split_at_its_tag() {
        for (image, name, tag) in [
            ("apache/kafka:4.1.1", "apache/kafka", "4.1.1"),
            (
                "registry:5000/apache/kafka:4.1.1",
                "registry:5000/apache/kafka",
                "4.1.1",
            ),
            (
                "registry:5000/apache/kafka",
                "registry:5000/apache/kafka",
                "latest",
            ),
            ("kafka", "kafka", "latest"),
        ] {
            let parsed = ImageName::parse(image).unwrap();
            assert_eq!(
                (parsed.name.as_str(), parsed.tag.as_str()),
                (name, tag),
                "{image}"
            );
        }
        for image in ["", ":1", "kafka:", "a b"] {
            assert!(ImageName::parse(image).is_err(), "{image}");
        }
    }
}
